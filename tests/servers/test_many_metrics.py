"""A run with 20,000 metric values, or 1,000,000 with DSV3_TEST_FULL=1: the server gets all, and trackers need little memory.

The journal has them before the run resumes, as if the server had been away all the time.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "e2e"))

from mlflow_server import free_port  # noqa: E402
from support import BUILD, RUN, dsv3_run, make_tiny  # noqa: E402

pytest.importorskip("mlflow", reason="requirements-mlflow.txt is not installed")

DSV3 = BUILD / "bin/dsv3"
NAMES = 1000  # in each line
LINES = 1000 if os.environ.get("DSV3_TEST_FULL") == "1" else 20
MOST_MEMORY = 64 << 20  # bytes that trackers may add
# Prints the peak memory of a command in KiB. Its own process is small, because the kernel includes what a process had
# before it executed another program.
LAUNCHER = """\
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def peak_memory(*command, folder, uri, check=0):
    """Run a command and return its peak memory in bytes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DATABRICKS_"))}
    done = subprocess.run([sys.executable, "-c", LAUNCHER, *map(str, command)], cwd=folder, text=True, capture_output=True,
                          env=environment | {"MLFLOW_TRACKING_URI": uri}, timeout=3600)
    assert check is None or done.returncode == check, done.stderr
    return int(done.stdout) << 10


def values(line):
    """Return the metrics of a line by name. All values are different."""
    return {f"many/{i:03}": line + i / 1024 for i in range(NAMES)}


def write_values(journal):
    with journal.open("a") as file:
        for line in range(LINES):
            file.write(json.dumps({"step": 2, "tokens": 384, "time": 1764000000.5 + line} | values(line)) + "\n")


def stored_values(server, run):
    identity = json.loads((run / "trackers/mlflow-0.store.json").read_text())["id"]
    with sqlite3.connect(f"file:{server.folder}/mlflow.db?mode=ro", uri=True) as database:
        return database.execute("SELECT key, value FROM metrics WHERE run_uuid = ? AND key LIKE 'many/%' ORDER BY value",
                                (identity,))


def test_a_server_gets_many_metrics_and_trackers_need_little_memory(tmp_path, mlflow_server, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # so nothing is sent before the journal is long
    text = make_tiny(tmp_path).read_text()
    (tmp_path / "tiny.yaml").write_text(text.replace("[{plugin: csv}]", "[{plugin: mlflow, experiment: many}]"))
    run, few, untracked = (tmp_path / "runs" / name for name in ("many", "few", "untracked"))
    for path in run, few:
        dsv3_run("tiny.yaml", "--run_name", path.name, "train.steps=2", "schedule.warmup=1", cwd=tmp_path)
    write_values(run / "metrics.jsonl")
    shutil.copytree(run, untracked)
    up, away = mlflow_server.url, f"http://127.0.0.1:{free_port()}"

    limit = MOST_MEMORY + peak_memory(RUN, "--run_id", "untracked", "tracker=[]", "train.steps=6", folder=tmp_path, uri=away)
    assert peak_memory(RUN, "--run_id", "many", "train.steps=4", folder=tmp_path, uri=away) < limit
    assert peak_memory(RUN, "--run_id", "many", "train.steps=6", folder=tmp_path, uri=up) < limit

    limit = MOST_MEMORY + peak_memory(DSV3, "sync", few, folder=tmp_path, uri=up)
    assert peak_memory(DSV3, "sync", run, "--timeout", "1", folder=tmp_path, uri=away, check=None) < limit
    assert peak_memory(DSV3, "sync", run, "--timeout", "3000", folder=tmp_path, uri=up) < limit
    expected = (entry for line in range(LINES) for entry in values(line).items())
    assert all(stored == value for stored, value in zip(stored_values(mlflow_server, run), expected, strict=True))
