"""Checkpoints of large models are written while training continues. They must be those of a run that waits for them."""

import re

import pytest

from support import dsv3_run, losses, make_tiny, tensors

# About 6 million parameters, of which AdamW has two moments: more than 64 MiB.
LARGE = ["model={hidden: 512, layers: 1, vocab: auto, attention: {plugin: mha, heads: 4, kv_heads: 4}, position: {plugin: rope}, "
         "feed_forward: {plugin: swiglu, hidden: 3072}}",
         "optimizer={plugin: adamw, lr: 1.0e-3}", "train.batch=1", "train.sequence=16", "schedule.warmup=0", "validation.every=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("background")
    make_tiny(folder)
    return folder


def train(folder, name, *settings):
    dsv3_run("tiny.yaml", *LARGE, "train.steps=5", *settings, "--run_name", name, cwd=folder)
    return folder / "runs" / name


def events(run):
    """Return the saves in the log, in order: ("in the background" or "saved", step)."""
    found = re.findall(r"saving step (\d+) in the background|saved checkpoint \S+step-(\d+)", (run / "log.txt").read_text())
    return [("background", int(start)) if start else ("saved", int(saved)) for start, saved in found]


def test_training_continues_while_a_checkpoint_is_written(folder):
    run = train(folder, "background", "checkpoint.every=2", "checkpoint.keep_best=0")
    assert events(run) == [("background", 2), ("saved", 2), ("background", 4), ("saved", 4), ("saved", 5)]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-5"]
    other = train(folder, "other", "checkpoint.every=0")
    assert events(other) == [("saved", 5)]
    assert tensors(run / "checkpoints/step-5") == tensors(other / "checkpoints/step-5")
    assert losses(run) == losses(other)


def test_a_checkpoint_written_in_the_background_has_the_whole_state(folder):
    run = train(folder, "source", "checkpoint.every=2", "checkpoint.keep_best=9", "validation.every=2")
    assert events(run)[0] == ("background", 2)
    dsv3_run("--branch", "source@2", "--run_name", "branch", cwd=folder)
    assert tensors(folder / "runs/branch/checkpoints/step-5") == tensors(run / "checkpoints/step-5")
