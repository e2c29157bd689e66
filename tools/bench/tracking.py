"""Measure what tracking costs the training thread, and how long trackers delay the end of a run.

    tools/dev bench tracking [--steps N] [--rounds R]

Trains the quick start's model on synthetic tokens with one thread, logs every step, and saves a checkpoint every ten. Each
round runs it without a tracker, and with the tracker mlflow in three states: with a real MLflow server, with an address
where nothing listens, and with a server that answers after 30 s.

Two measurements: the ratio of the thread's CPU time with and without a tracker, and the CPU time inside the calls for
tracking, which a preloaded library measures. These calls include writing metrics.jsonl and events.jsonl, which runs
without trackers do too. Only the second measurement can resolve 0.1 % on a busy machine.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/servers"))

from fake_mlflow import FakeMlflow  # noqa: E402
from mlflow_server import MlflowServer, free_port  # noqa: E402

BUILD = pathlib.Path(os.environ.get("DSV3_BUILD_DIR", ROOT / "build"))
LIMIT = 0.001  # of the training thread's CPU time
END_LIMIT = 10  # seconds from the last step to the end of the process
ANSWER_SECONDS = 30
SETTINGS = ["data={plugin: synthetic}", "data.tokenizer=null", "train.log_every=1", "train.threads=1",
            "schedule.warmup=1", "validation.every=0", "validation.batches=1", "samples.every=0", "checkpoint.every=10"]


def run(folder, steps, url):
    """Return the costs of a run in seconds, and the seconds from its last step to its end."""
    costs = folder / "costs.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DATABRICKS_"))}
    environment |= {"LD_PRELOAD": str(BUILD / "lib/tracking_cost.so"), "DSV3_TRACKING_COST": str(costs)}
    tracker = f"{{plugin: mlflow, uri: '{url}'}}" if url else "[]"
    command = [BUILD / "bin/dsv3-run", ROOT / "experiments/quickstart.yaml", *SETTINGS, f"train.steps={steps}",
               f"tracker={tracker}", "--output", folder / "runs", "--quiet"]
    process = subprocess.run(command, cwd=folder, env=environment, text=True, stderr=subprocess.PIPE)
    end = time.time()
    if process.returncode:
        sys.exit(f"error: dsv3-run ended with exit code {process.returncode}:\n{process.stderr}")
    journal, = folder.glob("runs/*/metrics.jsonl")
    last = json.loads(journal.read_text().splitlines()[-1])
    assert last["step"] == steps
    return json.loads(costs.read_text()) | {"delay": end - last["time"]}


@contextlib.contextmanager
def late_server():
    """Yield the address of a server that answers each request after 30 s."""
    def wait(_):
        server.ended.wait(ANSWER_SECONDS)
        return False
    server = FakeMlflow(fault=wait)
    yield server.url
    server.close()


def measure(steps, rounds):
    """Return the results of all runs by the state of the server. The states alternate."""
    with tempfile.TemporaryDirectory() as name, late_server() as late:
        folder = pathlib.Path(name)
        server = MlflowServer(folder)
        server.start()
        try:
            urls = {"none": None, "up": server.url, "away": f"http://127.0.0.1:{free_port()}", "late": late}
            results = {state: [] for state in urls}
            for i in range(rounds):
                for state, url in urls.items():
                    place = folder / f"{state}-{i}"
                    place.mkdir()
                    results[state].append(run(place, steps, url))
        finally:
            server.stop()
    return results


def spread(values):
    return f"{statistics.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    subprocess.run(["ninja", "-C", BUILD, "--quiet", "tracking_cost"], check=True)
    results = measure(a.steps, a.rounds)
    print(f"quick start, 8 x 256 tokens, 1 thread, {a.steps} steps, {a.rounds} rounds: median (smallest to largest)\n")
    print("| server | CPU time of the thread / without a tracker | in calls for tracking: ms at the start | us per step "
          "| ms at the end | fraction of the thread | s from the last step to the end |")
    print("|---|---|---|---|---|---|---|")
    worst, delay = 0, 0
    for state, runs in results.items():
        fractions = [(r["start"] + r["steps"] + r["end"]) / r["thread"] for r in runs]
        ratios = [r["thread"] / off["thread"] for r, off in zip(runs, results["none"])]
        start, step, end = (statistics.median(r[key] for r in runs) for key in ("start", "steps", "end"))
        print(f"| {state} | {spread(ratios)} | {start * 1e3:.1f} | {step / a.steps * 1e6:.0f} | {end * 1e3:.1f} "
              f"| {max(fractions):.4%} | {max(r['delay'] for r in runs):.1f} |")
        worst, delay = max(worst, *fractions), max(delay, *(r["delay"] for r in runs))
    print(f"\nVERDICT tracking costs {worst:.4%} of the thread's CPU time at most (limit {LIMIT:.1%})")
    print(f"VERDICT runs end {delay:.1f} s after their last step at most (limit {END_LIMIT} s)")
    return 0 if worst < LIMIT and delay < END_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
