"""Provides an installation that was moved after `cmake --install`, and runs commands without access to the source."""

import functools
import os
import pathlib
import shutil
import subprocess

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DSV3_BUILD_DIR", SOURCE / "build"))
VENV = SOURCE / ".venv"

# Runs a command with an empty source tree and build folder. Only .venv remains, without LibTorch: it contains CMake and
# Ninja. A separate mount namespace ensures that other tests keep their files.
HIDDEN = r"""
set -eu
held=$(mktemp -d)
mount --bind "$(realpath "$VENV")" "$held"
mount -t tmpfs none "$BUILD"
mount -t tmpfs none "$SOURCE"
mkdir "$VENV"
mount --bind "$held" "$VENV"
umount -l "$held"
rmdir "$held"
for part in torch nvidia; do
  mount -t tmpfs none "$VENV"/lib/python3*/site-packages/$part
done
cd "$PWD"
exec "$@"
"""


@functools.cache
def no_namespaces():
    """Return why the source tree cannot be hidden on this machine, or "" if it can."""
    done = subprocess.run(["unshare", "-rm", "true"], capture_output=True)
    return "" if done.returncode == 0 else "user namespaces are not allowed on this machine, so the source tree stays visible"


def run(*words, cwd=None, timeout=500, **environment):
    done = subprocess.run([str(w) for w in words], cwd=cwd, text=True, capture_output=True, timeout=timeout,
                          env={**os.environ, **{k: str(v) for k, v in environment.items()}})
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def third_party(*words, **rest):
    """Run a command with the source and build trees hidden, if this machine can hide them."""
    if no_namespaces():
        return run(*words, **rest)
    return run("unshare", "-rm", "bash", "-c", HIDDEN, "bash", *words, SOURCE=SOURCE, BUILD=BUILD, VENV=VENV, **rest)


@pytest.fixture(scope="session")
def prefix(tmp_path_factory):
    root = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", BUILD, "--prefix", root / "installed")
    shutil.move(root / "installed", root / "moved")
    yield root / "moved"
    shutil.rmtree(root)  # it may contain a copy of LibTorch
