"""Builds the components of this folder as a third party does, against a moved installation."""

import os
import pathlib
import shutil
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "sdk_consumer"), str(HERE.parent / "parity")]
from installation import prefix, run, third_party  # noqa: E402, F401


@pytest.fixture(scope="session")
def papers(prefix, tmp_path_factory):  # noqa: F811
    """Return a plugin path with all components."""
    folder = tmp_path_factory.mktemp("papers") / "source"
    shutil.copytree(HERE, folder)
    third_party("cmake", "-S", ".", "-B", "build", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}", cwd=folder)
    third_party("cmake", "--build", "build", "-j", os.environ.get("DSV3_TEST_JOBS", "2"), cwd=folder, timeout=1200)
    return folder / "build"
