"""What a third party does: `plugins new` of every kind, built against a moved installation, used by name."""

import json
import pathlib
import re
import subprocess

import pytest
from conftest import BUILD, SOURCE, run

KINDS = ["attention", "feed_forward", "position", "optimizer", "schedule", "strategy", "tracker", "data", "tokenizer",
         "format"]


def test_the_installation_names_no_build_tree(prefix):
    for file in prefix.rglob("*"):
        if file.is_file():
            assert str(BUILD).encode() + b"/" not in file.read_bytes(), file
    programs = [*(prefix / "bin").iterdir(), *prefix.rglob("*.so")]
    assert len(programs) > 15
    for file in programs:
        paths = re.findall(r"(?:RUNPATH|RPATH).*\[(.*)\]", run("readelf", "-d", file))
        assert not [p for p in paths for part in p.split(":") if part.startswith(str(BUILD))], (file, paths)
        found = run("ldd", file)
        assert "not found" not in found, (file, found)
        own = re.search(r"libdsv3\.so => (\S+)", found)
        assert own is None or pathlib.Path(own[1]).resolve() == (prefix / "lib/libdsv3.so").resolve(), (file, found)


def test_the_installation_finds_its_own_plugins(prefix, tmp_path):
    listed = run(prefix / "bin/dsv3", "plugins", "list", "--json", cwd=tmp_path)
    assert str(prefix) in listed and str(SOURCE) not in listed
    run(prefix / "bin/dsv3", "plugins", "describe", "attention/mla", cwd=tmp_path)
    assert (prefix / "share/dsv3/experiments/base/nano.yaml").is_file()


@pytest.fixture(scope="session")
def plugins(prefix, tmp_path_factory):
    """A folder with a plugin of each kind, called my_KIND."""
    folder = tmp_path_factory.mktemp("plugins")
    for kind in KINDS:
        run(prefix / "bin/dsv3", "plugins", "new", kind, f"my_{kind}", cwd=folder)
    return folder


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "format"])
def test_a_new_plugin_builds_and_trains_by_name(prefix, plugins, kind):
    folder = plugins / f"my_{kind}"
    run("cmake", "-S", ".", "-B", "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=folder)
    run("cmake", "--build", "build", cwd=folder)
    dsv3 = prefix / "bin/dsv3"
    run(dsv3, "plugins", "describe", f"{kind}/my_{kind}", "--plugin-path", "build", cwd=folder)
    settings = ["--set", "path=text.txt"] if kind == "data" else []
    run(dsv3, "plugins", "check", f"build/lib/dsv3/plugins/libdsv3_{kind}_my_{kind}.so", *settings, cwd=folder)
    run(prefix / "bin/dsv3-run", "experiment.yaml", "--plugin-path", "build", "--output", "runs",
        "--run_name", "first", cwd=folder)
    assert '"step":20' in (folder / "runs/first/metrics.jsonl").read_text().replace(" ", "")
    assert f"my_{kind}" in (folder / "runs/first/provenance.json").read_text()


def test_a_new_format_writes_and_reads_a_trained_model(prefix, plugins):
    """As its README says, word for word."""
    folder = plugins / "my_format"
    [script] = re.findall(r"^```sh\n(.*?)^```", (folder / "README.md").read_text(), re.M | re.S)
    said = run("bash", "-ec", script.replace("cmake -S", "cmake -G Ninja -S").replace("PREFIX", str(prefix)), cwd=folder)
    assert "my_format, 21 tensors" in said and "FAIL" not in said, said
    config = json.loads((folder / "exported/config.json").read_text())
    assert config["model_type"] == "my_format" and config["width"] == 32
    run(prefix / "bin/dsv3", "logits", "runs/first", "--tokens", "ids.json", "--out", "own.safetensors", cwd=folder)
    assert (folder / "own.safetensors").read_bytes() == (folder / "logits.safetensors").read_bytes()


@pytest.mark.parametrize("kind, name, says", [
    ("attention", "Mine", "lower-case"), ("attention", "2nd", "a letter first"), ("attention", "../x", "lower-case"),
    ("attention", "a@b", "lower-case"), ("attentoin", "mine", "attention"), ("attention", "taken", "already")])
def test_mistakes_leave_nothing_behind(prefix, tmp_path, kind, name, says):
    (tmp_path / "taken").mkdir()
    done = subprocess.run([prefix / "bin/dsv3", "plugins", "new", kind, name], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode in (2, 3) and says in done.stderr, done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["taken"] and not list((tmp_path / "taken").iterdir())
