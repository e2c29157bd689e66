"""An installation in a folder of its own, copied away from where it was installed."""

import os
import pathlib
import shutil
import subprocess

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DSV3_BUILD_DIR", SOURCE / "build"))


def run(*words, cwd=None, timeout=500):
    done = subprocess.run([str(w) for w in words], cwd=cwd, text=True, capture_output=True, timeout=timeout)
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def prefix(tmp_path_factory):
    root = tmp_path_factory.mktemp("prefix")
    run("cmake", "--install", BUILD, "--prefix", root / "installed")
    shutil.move(root / "installed", root / "moved")
    return root / "moved"
