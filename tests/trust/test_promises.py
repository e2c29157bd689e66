"""Every promise in promises.yaml has at least two tests."""

import os
import pathlib
import subprocess
import sys


def test_every_promise_is_tested_twice():
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "--collect-only", pathlib.Path(__file__).parent],
                          env={**os.environ, "DSV3_COUNT_PROMISES": "1"}, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]
