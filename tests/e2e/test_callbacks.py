"""Callbacks observe a run, stop it, and resume with it."""

import json
import subprocess

import pytest

from support import RUN, dsv3_run, last_checkpoint, losses, make_tiny, metrics

STOP = "callback=[{plugin: early_stop, metric: val/loss, patience: 2, min_delta: 100}]"


def status(run):
    return json.loads((run / "status.json").read_text())


@pytest.fixture
def folder(tmp_path):
    make_tiny(tmp_path)
    return tmp_path


def test_early_stop_ends_a_run_like_its_last_step(folder):
    """No loss improves by 100 nats, so the run ends at its third validation, at step 10."""
    done = dsv3_run("tiny.yaml", STOP, "validation.every=5", "--run_name", "a", cwd=folder)
    run = folder / "runs/a"
    reason = "val/loss has not improved for 2 values; its best value was"
    assert f"the run ends at step 10: {reason}" in done.stderr
    assert max(metrics(run)) == 10 and "val/loss" in metrics(run)[10]
    assert status(run)["state"] == "finished" and status(run)["step"] == 10
    assert last_checkpoint(run).name == "step-10"


def test_a_run_that_a_callback_ended_does_not_resume(folder):
    dsv3_run("tiny.yaml", STOP, "validation.every=5", "--run_name", "a", cwd=folder)
    done = dsv3_run("--run_id", "a", cwd=folder)
    assert "the run has ended: val/loss has not improved" in done.stderr
    assert max(metrics(folder / "runs/a")) == 10


def test_a_stop_between_validations_validates_and_saves(folder):
    stop = "callback=[{plugin: early_stop, metric: train/grad_norm, patience: 3, min_delta: 1.0e9}]"
    dsv3_run("tiny.yaml", stop, "checkpoint.every=0", "--run_name", "a", cwd=folder)
    run = folder / "runs/a"
    assert max(metrics(run)) == 4 and "val/loss" in metrics(run)[4]
    assert last_checkpoint(run).name == "step-4"


def test_a_resumed_callback_counts_on(folder):
    """The run is killed after three of four values without an improvement."""
    stop = "callback=[{plugin: early_stop, metric: val/loss, patience: 4, min_delta: 100}]"
    words = ["tiny.yaml", stop, "validation.every=2", "train.log_every=2"]
    dsv3_run(*words, "--run_name", "whole", cwd=folder)
    process = subprocess.Popen([RUN, *words, "--run_name", "cut"], cwd=folder, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "saved checkpoint" in line and line.rstrip().endswith("step-6"):
            process.kill()
            break
    process.communicate(timeout=60)
    done = dsv3_run("--run_id", "cut", cwd=folder)
    assert "the run ends at step 8" in done.stderr
    assert losses(folder / "runs/cut") == losses(folder / "runs/whole")


def test_a_metric_that_does_not_exist_is_reported(folder):
    stop = "callback=[{plugin: early_stop, metric: val/los}]"
    done = dsv3_run("tiny.yaml", stop, "train.steps=5", "--run_name", "a", cwd=folder)
    early, late = (done.stderr.index(text) for text in ("the run has not recorded a metric 'val/los' so far", "step 3/5"))
    assert early < late
    assert "early_stop: the run recorded no metric 'val/los'" in done.stderr


def test_unknown_options_of_a_callback_are_errors(folder):
    done = dsv3_run("tiny.yaml", "callback=[{plugin: early_stop, patients: 3}]", "--check", cwd=folder, check=2)
    assert "did you mean 'patience'" in done.stderr.lower()


def test_runs_are_named_after_their_experiment(folder):
    for number in (1, 2):
        dsv3_run("tiny.yaml", "train.steps=1", "schedule.warmup=0", cwd=folder)
    names = sorted(path.name for path in (folder / "runs").iterdir())
    assert [name.rsplit("-", 1)[1] for name in names] == ["1", "2"]
    assert all(name.startswith("tiny-20") for name in names)
