"""Build stored files as an attacker or an accident could leave them."""

import hashlib
import json
import os
import pathlib
import shutil
import struct
import subprocess

import support

FIXTURES = support.BUILD / "tests/bad_plugins/prefix/lib/dsv3/plugins"
# A library whose code throws as soon as it is loaded, so that an error shows whether it was.
HOSTILE = FIXTURES / "libdsv3_fixture_throws_statically.so"
RAN = "thrown by a static initialiser"


def fixture(name, folder, file="mine.so"):
    """Copy a plugin of tests/bad_plugins to `folder`."""
    folder.mkdir(exist_ok=True, parents=True)
    return pathlib.Path(shutil.copy(FIXTURES / f"libdsv3_fixture_{name}.so", folder / file))


def prefix(folder, name):
    """Install a plugin of tests/bad_plugins to the prefix `folder`, and return its library."""
    (folder / "registries").mkdir(parents=True)
    shutil.copy(FIXTURES.parents[2] / f"registries/{name}.toml", folder / "registries")
    return fixture(name, folder / "lib/dsv3/plugins", f"libdsv3_fixture_{name}.so")


def dsv3(*arguments, cwd, timeout=60, **more):
    return subprocess.run([support.BUILD / "bin/dsv3", *map(str, arguments)], cwd=cwd, text=True, capture_output=True,
                          errors="replace", timeout=timeout, **more)


def tiny_run(folder, *settings, name="r", check=0):
    """Train tiny.yaml for a few steps in `folder`, and return the run folder."""
    if not (folder / "tiny.yaml").exists():
        support.make_tiny(folder)
    warmup = [] if any(word.startswith("schedule=") for word in settings) else ["schedule.warmup=0"]
    support.dsv3_run("tiny.yaml", "train.steps=4", "validation.every=0", "checkpoint.every=2", *warmup, *settings,
                     "--run_name", name, cwd=folder, check=check)
    return folder / "runs" / name


def edit(file, *pairs):
    text = file.read_text()
    for old, new in pairs:
        assert old in text, (old, text)
        text = text.replace(old, new, 1)
    file.write_text(text)


def reseal(checkpoint, change=lambda manifest: None):
    """Change a manifest and make all its digests right again, as an attacker would."""
    file = checkpoint / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    for entry in manifest["files"]:
        content = (checkpoint / entry["name"]).read_bytes()
        entry["bytes"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    del manifest["sha256"]
    compact = json.dumps(manifest, separators=(",", ":"), ensure_ascii=False)
    manifest["sha256"] = hashlib.sha256(compact.encode()).hexdigest()
    file.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def overwrite_tensor(file, name, value):
    """Replace the first fp32 value of a tensor in a safetensors file."""
    content = bytearray(file.read_bytes())
    size, = struct.unpack("<Q", content[:8])
    begin = 8 + size + json.loads(content[8:8 + size])[name]["data_offsets"][0]
    content[begin:begin + 4] = struct.pack("<f", value)
    file.write_bytes(content)


def make_fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path
