"""The workflow of a third party: create a plugin of every kind with `plugins new`, build it against a moved
installation, and use it by name.

The source and build trees are hidden from the third party's commands (conftest.py). On a machine where they cannot be
hidden, a skipped test reports it, and the tests only check that no installed file contains the build tree's path.
"""

import json
import pathlib
import re
import subprocess

import pytest
from conftest import BUILD, SOURCE, VENV, no_namespaces, run, third_party

KINDS = ["attention", "feed_forward", "position", "optimizer", "schedule", "strategy", "tracker", "data", "tokenizer",
         "format"]


def test_the_source_is_hidden():
    if no_namespaces():
        pytest.skip(no_namespaces())
    assert third_party("ls", "-A", SOURCE, cwd="/").split() == [".venv"]
    assert third_party("ls", "-A", VENV, cwd="/").split()
    # A hidden build folder does not exist if it is inside the source tree; otherwise, it is empty.
    assert third_party("bash", "-c", f"ls -A {BUILD} 2>/dev/null || true", cwd="/") == ""
    assert (SOURCE / "core").is_dir() and (BUILD / "bin").is_dir()


def test_the_installation_names_no_build_tree(prefix):
    for file in prefix.rglob("*"):
        if file.is_file():
            assert str(BUILD).encode() + b"/" not in file.read_bytes(), file


def test_libraries_are_found_in_the_installation_and_in_libtorch(prefix):
    wheels = next(VENV.glob("lib/python3*/site-packages"))
    places = [path.resolve() for path in (prefix, wheels, pathlib.Path("/lib"), pathlib.Path("/lib64"))]
    programs = [*(prefix / "bin").iterdir(), *prefix.rglob("*.so")]
    assert len(programs) > 15
    for file in programs:
        paths = re.findall(r"(?:RUNPATH|RPATH).*\[(.*)\]", run("readelf", "-d", file))
        parts = [part.replace("$ORIGIN", str(file.parent)) for path in paths for part in path.split(":")]
        found = run("ldd", file)
        assert "not found" not in found, (file, found)
        libraries = dict(re.findall(r"(\S+) => (\S+)", found))
        if "libdsv3.so" in libraries:
            assert pathlib.Path(libraries["libdsv3.so"]).resolve() == (prefix / "lib/libdsv3.so").resolve(), file
        for path in [*parts, *libraries.values()]:
            real = pathlib.Path(path).resolve()
            assert any(real.is_relative_to(place) for place in places), (file, path, real)


def test_the_installation_finds_its_own_plugins(prefix, tmp_path):
    listed = third_party(prefix / "bin/dsv3", "plugins", "list", "--json", cwd=tmp_path)
    assert str(prefix) in listed and str(SOURCE) not in listed
    third_party(prefix / "bin/dsv3", "plugins", "describe", "attention/mla", cwd=tmp_path)
    assert (prefix / "share/dsv3/experiments/base/nano.yaml").is_file()


def test_the_installation_contains_the_fake_cuda_device(prefix, tmp_path):
    assert {file.name for file in (prefix / "lib/dsv3/fake_cuda").iterdir()} == {"libtorch_cuda.so", "libcuda.so.1"}
    third_party(prefix / "bin/dsv3", "plugins", "check", "position/rope", "--device", "fake", "--only", "device", cwd=tmp_path)


@pytest.fixture(scope="session")
def plugins(prefix, tmp_path_factory):
    """A folder with a plugin of each kind, named my_KIND."""
    folder = tmp_path_factory.mktemp("plugins")
    for kind in KINDS:
        third_party(prefix / "bin/dsv3", "plugins", "new", kind, f"my_{kind}", cwd=folder)
    return folder


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "format"])
def test_a_new_plugin_builds_and_trains_by_name(prefix, plugins, kind):
    folder = plugins / f"my_{kind}"
    third_party("cmake", "-S", ".", "-B", "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=folder)
    third_party("cmake", "--build", "build", cwd=folder)
    dsv3 = prefix / "bin/dsv3"
    third_party(dsv3, "plugins", "describe", f"{kind}/my_{kind}", "--plugin-path", "build", cwd=folder)
    settings = ["--set", "path=text.txt"] if kind == "data" else []
    third_party(dsv3, "plugins", "check", f"build/lib/dsv3/plugins/libdsv3_{kind}_my_{kind}.so", *settings, cwd=folder)
    third_party(prefix / "bin/dsv3-run", "experiment.yaml", "--plugin-path", "build", "--output", "runs",
                "--run_name", "first", cwd=folder)
    assert '"step":20' in (folder / "runs/first/metrics.jsonl").read_text().replace(" ", "")
    assert f"my_{kind}" in (folder / "runs/first/provenance.json").read_text()


def test_a_new_format_writes_and_reads_a_trained_model(prefix, plugins):
    """Run the commands in the README of a new format plugin verbatim."""
    folder = plugins / "my_format"
    [script] = re.findall(r"^```sh\n(.*?)^```", (folder / "README.md").read_text(), re.M | re.S)
    script = re.sub(r"\bPREFIX\b", str(prefix), script.replace("cmake -S", "cmake -G Ninja -S"))
    output = third_party("bash", "-ec", script, cwd=folder)
    assert "my_format, 21 tensors" in output and "FAIL" not in output, output
    config = json.loads((folder / "exported/config.json").read_text())
    assert config["model_type"] == "my_format" and config["width"] == 32
    third_party(prefix / "bin/dsv3", "logits", "runs/first", "--tokens", "ids.json", "--output", "trained.safetensors", cwd=folder)
    assert (folder / "trained.safetensors").read_bytes() == (folder / "logits.safetensors").read_bytes()


def test_libtorch_may_move_too(prefix, tmp_path):
    """Set LIBTORCH_ROOT for CMake and LD_LIBRARY_PATH for the programs, as in docs/writing-a-plugin.md."""
    if no_namespaces():
        pytest.skip(no_namespaces())
    for part in "torch", "nvidia":
        (tmp_path / "elsewhere" / part).mkdir(parents=True)
    moved = {"LIBTORCH": tmp_path / "elsewhere", "LD_LIBRARY_PATH": tmp_path / "elsewhere/torch/lib"}
    dsv3 = prefix / "bin/dsv3"
    third_party(dsv3, "plugins", "new", "schedule", "mine", cwd=tmp_path, **moved)
    folder = tmp_path / "mine"
    configure = ["cmake", "-S", ".", "-B", "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}"]
    with pytest.raises(AssertionError, match="LibTorch"):
        third_party(*configure, cwd=folder, **moved)
    third_party(*configure, f"-DLIBTORCH_ROOT={tmp_path}/elsewhere/torch", cwd=folder, **moved)
    third_party("cmake", "--build", "build", cwd=folder, **moved)
    third_party(dsv3, "plugins", "check", "build/lib/dsv3/plugins/libdsv3_schedule_mine.so", cwd=folder, **moved)
    third_party(prefix / "bin/dsv3-run", "experiment.yaml", "--plugin-path", "build", "--run_name", "first", cwd=folder, **moved)


def test_another_libtorch_is_rejected(prefix, tmp_path):
    run(prefix / "bin/dsv3", "plugins", "new", "schedule", "mine", cwd=tmp_path)
    other = tmp_path / "torch"
    real = next(VENV.glob("lib/python3*/site-packages/torch"))
    (other / "include/torch/headeronly").mkdir(parents=True)
    (other / "lib").symlink_to(real / "lib")
    (other / "include/torch/headeronly/version.h").write_text(
        "#define TORCH_VERSION_MAJOR 9\n#define TORCH_VERSION_MINOR 8\n#define TORCH_VERSION_PATCH 7\n")
    done = subprocess.run(["cmake", "-S", "mine", "-B", "build", f"-DCMAKE_PREFIX_PATH={prefix}", f"-DLIBTORCH_ROOT={other}"],
                          cwd=tmp_path, text=True, capture_output=True)
    error = " ".join(done.stderr.split())
    assert done.returncode != 0 and "not 9.8.7" in error and "set LIBTORCH_ROOT" in error and "Warning" not in error, error


@pytest.mark.parametrize("kind, name, error", [
    ("attention", "Mine", "lower-case"), ("attention", "2nd", "starting with a letter"), ("attention", "../x", "lower-case"),
    ("attention", "a@b", "lower-case"), ("attentoin", "mine", "attention"), ("attention", "taken", "already")])
def test_errors_leave_no_files(prefix, tmp_path, kind, name, error):
    (tmp_path / "taken").mkdir()
    done = subprocess.run([prefix / "bin/dsv3", "plugins", "new", kind, name], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode in (2, 3) and error in done.stderr, done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["taken"] and not list((tmp_path / "taken").iterdir())
