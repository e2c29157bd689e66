"""Opening stored files never runs code that came with them, and never leaves their folder."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest

from stored import FIXTURES, HOSTILE, RAN, dsv3, fixture, make_fifo, prefix, reseal, tiny_run
from support import RUN, dsv3_run, last_checkpoint, make_tiny, seal

PLAIN = ["model.mtp.depth=0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run, runs/r, and its export, hf."""
    folder = tmp_path_factory.mktemp("stored")
    tiny_run(folder, *PLAIN)
    done = dsv3("export", "runs/r", "hf", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of `trained` that a test may change."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def rejected(done, code, *words):
    assert done.returncode == code, done.stderr
    assert RAN not in done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


@pytest.mark.promise("stored-choices")
@pytest.mark.parametrize("key, value", [
    ("model.position.library", str(HOSTILE)), ("model.feed_forward.0.library", str(HOSTILE)), ("model.attention.plugin", "none"),
    ("model.norm.eps", "0.1"), ("data.tokenizer.file", "/etc/hostname"), ("position.rope.layout", "diagonal"),
    ("position.rope.layout (layers 99999999999999999999)", "half"), ("optimizer.adamw.lr", "1"),
])
def test_conventions_are_only_conventions(folder, key, value):
    sidecar = json.loads((folder / "hf/dsv3.json").read_text())
    sidecar["conventions"][key] = value
    (folder / "hf/dsv3.json").write_text(json.dumps(sidecar))
    rejected(dsv3("generate", "hf", "--prompt", "a", "--tokens", "1", cwd=folder), 5, key.split(" ")[0])


def add_library(text):
    """Add `library:` to the schedule in a resolved experiment."""
    return re.sub(r"(?m)^schedule:\n  plugin: cosine", f"schedule:\n  plugin: halving\n  library: {HOSTILE}", text)


OPENERS = {
    "resume": lambda folder: dsv3_run("--run_id", "r", cwd=folder, check=None),
    "branch": lambda folder: dsv3_run("--branch", "r", "train.steps=9", cwd=folder, check=None),
    "compare": lambda folder: dsv3("compare", "runs/r", "tiny.yaml", cwd=folder),
}
MODEL_OPENERS = {
    "generate": lambda folder: dsv3("generate", last_checkpoint(folder / "runs/r"), "--prompt", "a", cwd=folder),
    "eval": lambda folder: dsv3("eval", "runs/r", cwd=folder),
    "export": lambda folder: dsv3("export", "runs/r", "other", cwd=folder),
}


@pytest.mark.promise("plugin-sources")
@pytest.mark.parametrize("opener", OPENERS)
def test_a_run_cannot_name_a_library(folder, opener):
    config = folder / "runs/r/config.yaml"
    config.write_text(add_library(config.read_text()))
    rejected(OPENERS[opener](folder), 2, "a stored experiment cannot load a library by itself", f"--plugin-path {HOSTILE}")


@pytest.mark.promise("plugin-sources")
@pytest.mark.parametrize("opener", MODEL_OPENERS)
def test_a_checkpoint_cannot_name_a_library(folder, opener):
    reseal(last_checkpoint(folder / "runs/r"), lambda m: m["state"].update(config=add_library(m["state"]["config"])))
    rejected(MODEL_OPENERS[opener](folder), 2, "a stored experiment cannot load a library by itself")


@pytest.mark.promise("plugin-sources")
@pytest.mark.parametrize("text", [f"plugin_paths: [{FIXTURES.parents[2]}]\n",
                                  f"tracker: [{{plugin: csv, library: {HOSTILE}}}]\n"])
def test_config_in_the_current_folder_names_no_code(folder, text):
    (folder / "config.yaml").write_text(text)
    rejected(dsv3_run("tiny.yaml", "--check", cwd=folder, check=None), 2, "config.yaml in the current folder", "~/.config/dsv3")
    if "plugin_paths" in text:
        rejected(dsv3("plugins", "list", cwd=folder), 2, "config.yaml in the current folder")


@pytest.mark.promise("plugin-sources")
def test_the_users_own_config_names_plugins(folder):
    home = folder / "home/.config/dsv3"
    home.mkdir(parents=True)
    fixture("good", home)
    (home / "config.yaml").write_text("plugin_paths: [mine.so]\n")
    environment = {**os.environ, "HOME": str(folder / "home")}
    environment.pop("XDG_CONFIG_HOME", None)
    assert "halving" in dsv3("plugins", "list", cwd=folder, env=environment).stdout


@pytest.mark.promise("plugin-sources")
def test_a_run_with_a_library_resumes_with_plugin_path(tmp_path):
    library = fixture("good", tmp_path / "my; plugins")
    tiny_run(tmp_path, f"schedule={{plugin: halving, library: '{library}'}}")
    failed = dsv3_run("--run_id", "r", "train.steps=6", cwd=tmp_path, check=2)
    hints = set(re.findall(r"--plugin-path .+", failed.stderr))
    assert hints, failed.stderr
    for hint in hints:
        run = ["bash", "-c", f"{RUN} --run_id r train.steps=6 {hint}"]
        assert subprocess.run(run, cwd=tmp_path, capture_output=True).returncode == 0
    # The experiment itself names it too.
    dsv3_run("tiny.yaml", f"schedule={{plugin: halving, library: '{library}'}}", "train.steps=8", "validation.every=0",
             "checkpoint.every=2", "--run_id", "r", cwd=tmp_path)


@pytest.mark.promise("checked-bytes")
@pytest.mark.parametrize("place", ["start", "middle", "stamp", "end", "cut"])
def test_a_damaged_library_is_not_loaded(tmp_path, place):
    make_tiny(tmp_path)
    library = fixture("throws_statically", tmp_path)
    content = bytearray(library.read_bytes())
    at = {"start": 0x40, "middle": len(content) // 2, "stamp": content.index(b"version=1.2.3") + 8, "end": len(content) - 90,
          "cut": 0}[place]
    content[at] ^= 4
    library.write_bytes(content[:-1] if place == "cut" else content)
    done = dsv3_run("tiny.yaml", "schedule={plugin: halving, library: mine.so}", "--check", cwd=tmp_path, check=3)
    assert "mine.so" in done.stderr and RAN not in done.stderr


@pytest.mark.promise("checked-bytes")
def test_libraries_are_loaded_from_sealed_memory(tmp_path):
    make_tiny(tmp_path)
    library = fixture("good", tmp_path)
    process = subprocess.Popen([RUN, "tiny.yaml", "train.steps=100000", "schedule={plugin: halving, library: mine.so}"],
                               cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while "step 1/" not in process.stderr.readline():
        assert process.poll() is None
    maps = open(f"/proc/{process.pid}/maps").read()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert str(library) not in maps and "/memfd:mine.so" in maps and "/memfd:libdsv3_attention_mla.so" in maps


OWNERS = {
    "file of another owner": lambda library: os.chown(library, 12345, 12345),
    "folder of another owner": lambda library: os.chown(library.parent, 12345, 12345),
    "file writable by all": lambda library: library.chmod(0o777),
    "folder writable by all": lambda library: library.parent.chmod(0o777),
    "outer folder writable by all": lambda library: library.parent.parent.chmod(0o777),
    "file writable by a group": lambda library: (os.chown(library, -1, 12345), library.chmod(0o775)),
}


@pytest.mark.promise("plugin-owners")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("case", OWNERS)
@pytest.mark.parametrize("how", ["library", "file on the search path", "prefix"])
def test_libraries_that_others_can_change_are_not_loaded(tmp_path, case, how):
    make_tiny(tmp_path)
    library = prefix(tmp_path / "a/b", "throws_statically")
    OWNERS[case](library)
    words = [f"schedule={{plugin: halving, library: {library}}}"] if how == "library" else \
        ["schedule={plugin: halving}", "--plugin-path", "a/b" if how == "prefix" else library]
    done = dsv3_run("tiny.yaml", *words, "--check", cwd=tmp_path, check=3)
    assert "could put other code there" in done.stderr and RAN not in done.stderr


@pytest.mark.promise("plugin-owners")
def test_a_registry_that_others_can_change_is_not_read(tmp_path):
    make_tiny(tmp_path)
    prefix(tmp_path / "p", "good")
    registry = tmp_path / "p/registries/good.toml"
    words = ["tiny.yaml", "schedule={plugin: halving}", "--plugin-path", "p", "--check"]
    dsv3_run(*words, cwd=tmp_path)
    registry.chmod(0o666)
    assert "registry" in dsv3_run(*words, cwd=tmp_path, check=3).stderr


@pytest.mark.promise("private-libraries")
@pytest.mark.parametrize("place", ["beside", "below"])
def test_a_plugin_with_a_private_library_works(tmp_path, place):
    make_tiny(tmp_path)
    library = fixture(f"private_{place}", tmp_path / "p", f"libdsv3_fixture_private_{place}.so")
    name = f"libfixture_number_{place}.so"
    below = "" if place == "beside" else "below"
    (tmp_path / "p" / below).mkdir(exist_ok=True)
    shutil.copy(FIXTURES / below / name, tmp_path / "p" / below / name)
    words = ["tiny.yaml", f"schedule={{plugin: private, library: {library}}}", "--check"]
    dsv3_run(*words, cwd=tmp_path)
    (tmp_path / "p" / below / name).chmod(0o777)
    assert name in dsv3_run(*words, cwd=tmp_path, check=3).stderr


@pytest.mark.promise("inside-run")
@pytest.mark.parametrize("name", ["log.txt", "metrics.jsonl", "lock", "status.json", "checkpoints", "metrics.csv", "samples"])
def test_links_in_a_run_folder_are_not_followed(folder, name):
    outside = folder / "outside"
    entry = folder / "runs/r" / name
    if entry.is_dir() or name == "samples":
        shutil.rmtree(entry, ignore_errors=True)
        outside.mkdir()
    else:
        entry.unlink(missing_ok=True)
        outside.write_text("precious\n")
    entry.symlink_to(outside)
    done = dsv3_run("--run_id", "r", cwd=folder, check=2)
    assert f"{name} is a symbolic link" in done.stderr
    assert list(outside.iterdir()) == [] if outside.is_dir() else outside.read_text() == "precious\n"


@pytest.mark.promise("inside-run")
def test_a_link_below_a_checkpoint_is_not_followed(folder):
    tensors = last_checkpoint(folder / "runs/r") / "rank-00000.safetensors"
    shutil.move(tensors, folder / "elsewhere")
    tensors.symlink_to(folder / "elsewhere")
    assert "symbolic link" in dsv3_run("--run_id", "r", cwd=folder, check=2).stderr


@pytest.mark.promise("regular-files")
@pytest.mark.parametrize("name", ["log.txt", "status.json"])
def test_a_socket_in_a_run_folder_is_an_error(folder, name):
    (folder / "runs/r" / name).unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "runs/r" / name))  # a socket's path is short
        done = dsv3_run("--run_id", "r", cwd=folder, check=2)
    assert f"{name} is not a regular file" in done.stderr


FIFOS = {
    "text": (lambda f: f / "text.txt", lambda f: dsv3_run("tiny.yaml", "--run_name", "x", cwd=f, check=None, timeout=30)),
    "experiment": (lambda f: f / "tiny.yaml", lambda f: dsv3_run("tiny.yaml", cwd=f, check=None, timeout=30)),
    "config.json": (lambda f: f / "hf/config.json", lambda f: dsv3("generate", "hf", "--prompt", "a", cwd=f, timeout=30)),
    "weights": (lambda f: f / "hf/model.safetensors", lambda f: dsv3("generate", "hf", "--prompt", "a", cwd=f, timeout=30)),
    "manifest": (lambda f: last_checkpoint(f / "runs/r") / "manifest.json",
                 lambda f: dsv3("generate", last_checkpoint(f / "runs/r"), "--prompt", "a", cwd=f, timeout=30)),
    "metrics": (lambda f: f / "runs/r/metrics.jsonl", lambda f: dsv3("compare", "runs/r", "tiny.yaml", cwd=f, timeout=30)),
    "library": (lambda f: f / "mine.so",
                lambda f: dsv3_run("tiny.yaml", "schedule={plugin: halving, library: mine.so}", cwd=f, check=None, timeout=30)),
    "tokenizer": (lambda f: f / "tok.json",
                  lambda f: dsv3_run("tiny.yaml", "tokenizer={plugin: bpe, file: tok.json}", cwd=f, check=None, timeout=30)),
}


@pytest.mark.promise("regular-files")
@pytest.mark.parametrize("case", FIFOS)
def test_a_fifo_is_an_error(folder, case):
    path, command = FIFOS[case]
    fifo = make_fifo(path(folder))
    begin = time.monotonic()
    done = command(folder)
    assert done.returncode not in (0, -9) and time.monotonic() - begin < 30
    assert fifo.name in done.stderr or fifo.parent.name in done.stderr, done.stderr
