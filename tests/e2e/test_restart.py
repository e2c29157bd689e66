"""dsv3-run --max_restarts resumes a run that was killed, with the same results as an undisturbed one."""

import os
import pathlib
import re
import signal
import subprocess
import time

import pytest

from support import RUN, dsv3_run, last_checkpoint, losses, make_tiny, tensors


def children_of(pid):
    return [int(child) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()]


def newest_step(folder):
    names = [path.name for path in folder.glob("runs/*/checkpoints/*")]
    return max((int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name)), default=0)


@pytest.mark.parametrize("name", [[], ["--run_name", "killed"]])
def test_a_killed_run_is_resumed(tmp_path, name):
    make_tiny(tmp_path)
    (tmp_path / "undisturbed").mkdir()
    make_tiny(tmp_path / "undisturbed")
    settings = ["tiny.yaml", "train.steps=300"]
    dsv3_run(*settings, "--run_name", "run", cwd=tmp_path / "undisturbed")
    process = subprocess.Popen([RUN, *settings, *name, "--max_restarts", "1"], cwd=tmp_path, text=True,
                               stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while newest_step(tmp_path) < 6:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    rank, = children_of(process.pid)
    os.kill(rank, signal.SIGKILL)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err
    assert "rank 0 failed first: it was killed by signal 9 (SIGKILL)" in err
    assert re.search(r"resuming from step [1-9]", err), err
    run, = (tmp_path / "runs").iterdir()
    undisturbed = tmp_path / "undisturbed/runs/run"
    assert losses(run) == losses(undisturbed)
    assert tensors(last_checkpoint(run)) == tensors(last_checkpoint(undisturbed))


def test_a_run_that_cannot_start_is_not_repeated(tmp_path):
    make_tiny(tmp_path)
    done = dsv3_run("tiny.yaml", "model.hidden=-1", "--num_gpus", "2", "--max_restarts", "2", cwd=tmp_path, check=2)
    assert done.stderr.count("model.hidden") == 1, done.stderr
    assert "rank" not in done.stderr
    done = dsv3_run("tiny.yaml", "--num_gpus", "0", cwd=tmp_path, check=2)
    assert "invalid value '0' for --num_gpus; expected 1 to 1024" in done.stderr


def test_num_gpus_changes_nothing_about_checks(tmp_path):
    make_tiny(tmp_path)
    for flags in (["--check"], ["--print-config"]):
        plain = dsv3_run("tiny.yaml", "strategy=ddp", *flags, cwd=tmp_path)
        assert dsv3_run("tiny.yaml", "strategy=ddp", *flags, "--num_gpus", "2", cwd=tmp_path).stdout == plain.stdout
