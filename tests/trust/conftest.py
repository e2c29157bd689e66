"""Read the promises of promises.yaml, and count the tests of each."""

import collections
import os
import pathlib
import sys

import pytest
import yaml

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "e2e"))

PROMISES = yaml.safe_load((HERE / "promises.yaml").read_text())


def pytest_configure(config):
    config.addinivalue_line("markers", "promise(name): the promise in promises.yaml that a test checks")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    counts = collections.Counter(mark.args[0] for item in items for mark in item.iter_markers("promise"))
    unknown = sorted(set(counts) - set(PROMISES))
    assert not unknown, f"promises that promises.yaml does not list: {unknown}"
    if os.environ.get("DSV3_COUNT_PROMISES"):  # set by test_promises.py, which collects all files
        few = [name for name in PROMISES if counts[name] < 2]
        assert not few, f"promises with fewer than two tests: {few}"
