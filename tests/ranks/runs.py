"""Train the tiny experiment on several ranks."""

import json
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from support import BUILD, RUN, SOURCE, last_checkpoint, losses, make_tiny, metrics  # noqa: F401, E402

SAMPLED = ["attention/max_logit"]  # from other tokens if the micro-batch differs
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
EXPERTS = "model.feed_forward.1.expert_parallel=2"
SHORT = ["train.steps=10", "schedule=constant", "schedule.warmup=0", "checkpoint.every=5", "validation.every=5"]


def command(name, *arguments, ranks=1):
    return [RUN, "tiny.yaml", "--run_name", name, *map(str, arguments), *([] if ranks == 1 else ["--num_gpus", str(ranks)])]


def start(folder, *arguments):
    return subprocess.Popen([*map(str, arguments)], cwd=folder, text=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def run(folder, *arguments, code=0, timeout=120):
    """Run the command, assert its exit code, and return what it printed on stderr."""
    process = start(folder, *arguments)
    try:
        _, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == code, f"exit {process.returncode}, not {code}:\n{err}"
    return err


def train(folder, name, *arguments, ranks=1, code=0):
    return run(folder, *command(name, *arguments, ranks=ranks), code=code)


def resume(folder, name, *arguments, ranks=1, code=0):
    flags = [] if ranks == 1 else ["--num_gpus", str(ranks)]
    return run(folder, RUN, "--run_id", name, *map(str, arguments), *flags, code=code)


def provenance(folder):
    return json.loads((folder / "provenance.json").read_text())


def difference(a, b, first=0):
    """Return the largest relative difference between the metrics of two runs from step `first` on."""
    a, b = [{step: {key: value for key, value in row.items() if key not in SAMPLED} for step, row in losses(run).items()}
            for run in (a, b)]
    assert a.keys() >= {step for step in b if step >= first} and b
    worst = 0
    for step, row in b.items():
        if step < first:
            continue
        assert a[step].keys() == row.keys()
        for key, value in row.items():
            worst = max(worst, abs(a[step][key] - value) / max(abs(value), 1e-2))
    return worst


def rank_processes(parent, count, timeout=30):
    """Return the process ids of a launcher's ranks, by rank, once all of them exist."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = {}
        for child in children_of(parent):
            try:
                variables = pathlib.Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            for variable in variables:
                if variable.startswith(b"RANK="):
                    found[int(variable[5:])] = child
        if len(found) == count:
            return found
        time.sleep(0.01)
    raise AssertionError("the ranks have not started")


def children_of(parent):
    text = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(word) for word in text.split()]


def wait_for_step(folder, step, process, timeout=60):
    """Wait until metrics.jsonl contains `step`."""
    deadline = time.monotonic() + timeout
    path = folder / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and any(json.loads(line)["step"] >= step for line in path.read_text().split("\n")[:-1]):
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")
