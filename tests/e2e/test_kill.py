"""Kill dsv3-run with SIGKILL at random moments and resume it: losses and final weights equal those of a run that was
not killed.

This test kills the real program a few times. tests/core/kill covers many more kill points.
"""

import random
import re
import shutil
import signal
import subprocess
import time

from support import RUN, SEED, dsv3_run, last_checkpoint, losses, make_tiny, metrics, tensors

KILLS = 8


def test_killed_runs_end_bit_identical(tmp_path):
    print(f"DSV3_TEST_SEED={SEED}, {KILLS} kills")
    rng = random.Random(SEED)
    make_tiny(tmp_path)
    # A checkpoint every other step, so that many kills happen during a save.
    arguments = ["tiny.yaml", "train.steps=60", "checkpoint.every=2"]
    begin = time.monotonic()
    dsv3_run(*arguments, "--run_name", "unkilled", cwd=tmp_path)
    seconds = time.monotonic() - begin
    unkilled = tmp_path / "runs/unkilled"
    resumed, inside_a_save = 0, 0
    for number in range(KILLS):
        name = f"killed-{number}"
        run = tmp_path / "runs" / name
        process = subprocess.Popen([RUN, *arguments, "--run_name", name], cwd=tmp_path, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.25, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not run.exists():
            continue
        inside_a_save += bool(list((run / "checkpoints").glob("*.tmp-*")))
        done = dsv3_run(*arguments, "--run_id", name, cwd=tmp_path)
        resumed += "resuming from step" in done.stderr
        assert losses(run) == losses(unkilled), f"kill {number}, seed {SEED}"
        assert tensors(last_checkpoint(run)) == tensors(last_checkpoint(unkilled)), f"kill {number}, seed {SEED}"
        assert not list((run / "checkpoints").glob("*.tmp-*"))
        assert sorted(metrics(run)) == list(range(61))
        shutil.rmtree(run)
    print(f"of {KILLS} killed runs, {resumed} resumed from a step above 0; {inside_a_save} were killed during a save")
    assert resumed >= KILLS // 2
