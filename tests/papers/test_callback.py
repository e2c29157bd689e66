"""A callback passes `plugins check`, and a resumed run stops at the same step as an uninterrupted one."""

import json
import shutil

from conftest import third_party
from test_layers import metrics, train  # noqa: F401

SPIKE = "callback=[{plugin: loss_spike, deviations: %s, warmup: 2}]"


def test_check_passes(prefix, papers):
    output = third_party(prefix / "bin/dsv3", "plugins", "check", "callback/loss_spike", "--plugin-path", papers, cwd=papers)
    assert "FAIL" not in output and "state" in output


def test_resumed_callbacks_have_the_same_state(train, tmp_path):  # noqa: F811
    whole = train("whole", SPIKE % 1e9)
    shutil.copytree(whole, tmp_path / "runs/resumed")
    shutil.rmtree(tmp_path / "runs/resumed/checkpoints/step-6")
    resumed = train("resumed")
    states = [json.loads((run / "checkpoints/step-6/manifest.json").read_text())["state"]["callbacks"]
              for run in (whole, resumed)]
    assert states[0] == states[1] and states[0][0]["state"]["seen"] == 6


def test_a_spike_ends_the_run(train):  # noqa: F811
    """A loss that falls never exceeds its average, unless the learning rate is far too high."""
    assert max(metrics(train("falling", SPIKE % 1))) == 6
    run = train("spiking", SPIKE % 1, "optimizer.lr=30")
    assert max(metrics(run)) < 6
    assert "the loss spiked to" in (run / "log.txt").read_text()
