"""The workflow of a third party: create a plugin of every kind with `plugins new`, build it against a moved
installation, and use it by name.

The source and build trees and .venv's LibTorch are hidden from the third party's commands (conftest.py). On a machine
where they cannot be hidden, a skipped test reports it, and the tests only check the paths in the installed files.
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
    assert third_party("bash", "-c", f"ls -A {VENV}/lib/python3*/site-packages/torch", cwd="/") == ""
    assert third_party("ls", "-A", VENV, cwd="/").split()
    # A hidden build folder does not exist if it is inside the source tree; otherwise, it is empty.
    assert third_party("bash", "-c", f"ls -A {BUILD} 2>/dev/null || true", cwd="/") == ""
    assert (SOURCE / "core").is_dir() and (BUILD / "bin").is_dir()


def installed_files(prefix):
    """All files in the prefix but LibTorch's own."""
    return [file for file in prefix.rglob("*")
            if file.is_file() and not file.is_relative_to(prefix / "lib/dsv3/libtorch")]


def test_the_installation_names_no_path_of_the_clone(prefix):
    for file in installed_files(prefix):
        content = file.read_bytes()
        # GCC writes the paths of headers into libraries, for the texts of failed assertions.
        clone = BUILD if content.startswith(b"\x7fELF") else SOURCE
        assert str(clone).encode() + b"/" not in content, file


def test_libraries_are_found_in_the_installation(prefix):
    places = [path.resolve() for path in (prefix, pathlib.Path("/lib"), pathlib.Path("/lib64"))]
    programs = [file for file in installed_files(prefix) if file.parent.name == "bin" or file.suffix == ".so"]
    assert len(programs) > 15
    for file in programs:
        paths = re.findall(r"(?:RUNPATH|RPATH).*\[(.*)\]", run("readelf", "-d", file))
        parts = [part.replace("$ORIGIN", str(file.parent)) for path in paths for part in path.split(":")]
        found = run("ldd", file)
        assert "not found" not in found, (file, found)
        libraries = dict(re.findall(r"(\S+) => (\S+)", found))
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
    """A folder with a plugin of each kind, named my_KIND. All but the format are built as one project."""
    folder = tmp_path_factory.mktemp("plugins")
    for kind in KINDS:
        third_party(prefix / "bin/dsv3", "plugins", "new", kind, f"my_{kind}", cwd=folder)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(all LANGUAGES CXX)\nset(CMAKE_BUILD_TYPE Release)\n" +
        "".join(f"add_subdirectory(my_{kind})\n" for kind in KINDS if kind != "format"))
    third_party("cmake", "-S", ".", "-B", "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=folder)
    third_party("cmake", "--build", "build", cwd=folder)
    return folder


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "format"])
def test_a_new_plugin_trains_by_name(prefix, plugins, kind):
    folder = plugins / f"my_{kind}"
    dsv3 = prefix / "bin/dsv3"
    third_party(dsv3, "plugins", "describe", f"{kind}/my_{kind}", "--plugin-path", "../build", cwd=folder)
    settings = ["--set", "path=text.txt"] if kind == "data" else []
    third_party(dsv3, "plugins", "check", f"../build/lib/dsv3/plugins/libdsv3_{kind}_my_{kind}.so", *settings, cwd=folder)
    third_party(prefix / "bin/dsv3-run", "experiment.yaml", "--plugin-path", "../build", "--output", "runs",
                "--run_name", "first", cwd=folder)
    assert '"step":20' in (folder / "runs/first/metrics.jsonl").read_text().replace(" ", "")
    assert f"my_{kind}" in (folder / "runs/first/provenance.json").read_text()


def test_plugins_share_a_precompiled_header(plugins):
    [header] = plugins.glob("build/**/*.gch")
    commands = {pathlib.Path(entry["file"]).stem: entry["command"]
                for entry in json.loads((plugins / "build/compile_commands.json").read_text())}
    for kind in "attention", "feed_forward", "optimizer", "strategy":
        assert f"-include {header.with_suffix('')} " in commands[f"my_{kind}"], kind
    for kind in "schedule", "tokenizer":  # without tensors
        assert "-include" not in commands[f"my_{kind}"], kind


HTTP_PROGRAM = """
#include <iostream>
#include <dsv3/support/http.h>
int main() try {
  dsv3::http::Client().send({.url = "http://127.0.0.1:9/path"});
} catch (const dsv3::http::Failure& failure) {
  std::cout << (failure.kind() == dsv3::http::Failure::Kind::connect) << failure.what();
}
"""


def test_a_program_uses_the_http_client(prefix, tmp_path):
    (tmp_path / "fetch.cpp").write_text(HTTP_PROGRAM)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(fetch LANGUAGES CXX)\nset(CMAKE_CXX_STANDARD 20)\n"
        "find_package(dsv3 REQUIRED)\nadd_executable(fetch fetch.cpp)\ntarget_link_libraries(fetch dsv3::sdk)\n")
    third_party("cmake", "-S", ".", "-B", "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=tmp_path)
    third_party("cmake", "--build", "build", cwd=tmp_path)
    assert third_party("build/fetch", cwd=tmp_path).startswith("1request 'GET http://127.0.0.1:9/path' failed: ")


def test_a_built_in_name_must_be_requested(prefix, tmp_path):
    dsv3 = prefix / "bin/dsv3"
    third_party(dsv3, "plugins", "new", "schedule", "mine", cwd=tmp_path)
    folder = tmp_path / "mine"
    for file in folder / "mine.cpp", folder / "CMakeLists.txt":
        file.write_text(file.read_text().replace('"mine"', '"cosine"').replace("schedule/mine", "schedule/cosine"))
    third_party("cmake", "-S", ".", "-B", "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=folder)
    third_party("cmake", "--build", "build", cwd=folder)
    library = folder / "build/lib/dsv3/plugins/libdsv3_schedule_mine.so"
    experiment = [prefix / "bin/dsv3-run", "experiment.yaml", "--run_name", "first"]
    with pytest.raises(AssertionError) as error:
        third_party(*experiment, "schedule={plugin: cosine}", "--plugin-path", "build", cwd=folder)
    for path in library, prefix / "lib/dsv3/plugins/libdsv3_schedule_cosine.so":
        assert str(path) in str(error.value)
    assert f"`library: {library}`" in str(error.value)
    third_party(*experiment, f"schedule={{plugin: cosine, library: {library}}}", cwd=folder)
    assert str(library) in (folder / "runs/first/provenance.json").read_text()


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


@pytest.mark.parametrize("kind, name, error", [
    ("attention", "Mine", "lower-case"), ("attention", "2nd", "starting with a letter"), ("attention", "../x", "lower-case"),
    ("attention", "a@b", "lower-case"), ("attentoin", "mine", "attention"), ("attention", "taken", "already"),
    ("attention", "mla", "built-in")])
def test_errors_leave_no_files(prefix, tmp_path, kind, name, error):
    (tmp_path / "taken").mkdir()
    done = subprocess.run([prefix / "bin/dsv3", "plugins", "new", kind, name], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode in (2, 3) and error in done.stderr, done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["taken"] and not list((tmp_path / "taken").iterdir())
