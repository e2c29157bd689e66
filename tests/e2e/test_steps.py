"""Training steps on difficult data: skipped steps, and rows with very different numbers of targets that are split into
micro-batches. Rows and faults come from the test plugins in tests/plugins/data/ragged."""

import array
import math

import pytest

from runs import assert_exact_resume, manifest
from support import BUILD, dsv3_run, make_tiny, metrics, tensors

PLUGINS = ["--plugin-path", BUILD / "tests/plugins/ragged"]
LOSS = "train/total_loss"  # the weighted sum of all losses, which the gradient belongs to
RAGGED = ["model.vocab=64", "train.sequence=24", "train.log_every=1", "schedule.warmup=3", "validation.every=1", "validation.batches=2",
          "checkpoint.every=1", "checkpoint.keep_best=50"]
RATE, BETA1, BETA2, EPS, DECAY = 5e-3, 0.9, 0.95, 1e-8, 0.1
ADAMW = f"optimizer={{plugin: adamw, lr: {RATE}, beta1: {BETA1}, beta2: {BETA2}, eps: {EPS}, weight_decay: {DECAY}}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    make_tiny(folder)
    return folder


def train(folder, name, data, *settings):
    """Train on ragged data and return the run folder."""
    dsv3_run("tiny.yaml", f"data={{plugin: ragged, {data}}}", "data.tokenizer=null", *RAGGED, *settings, *PLUGINS, "--run_name", name,
             cwd=folder)
    return folder / "runs" / name


def stored(run, step):
    return tensors(run / f"checkpoints/step-{step}")


def numbers(entry):
    dtype, _, data = entry
    assert dtype == "F32"
    return array.array("f", data)


def largest_difference(ours, theirs):
    """Return the largest difference between two tensors, relative to the largest value."""
    ours, theirs = numbers(ours), numbers(theirs)
    return max(abs(a - b) for a, b in zip(ours, theirs)) / max(max(map(abs, theirs)), 1e-12)


# ---- train.not_finite=skip

STEPS = 12
# The cliff makes every ninth row NaN: rows 8, 17, 26, 35 and 44, four rows in each step. Others have documents of at most 6 tokens.
WITH_NAN = "whole_every: 9, padding: false"
SKIPPED = {3, 5, 7, 9, 12}
SKIPPING = ["model.position={plugin: cliff, edge: 8}", "train.not_finite=skip", f"train.steps={STEPS}"]


@pytest.fixture(scope="module", params=["adamw", "muon"])
def skipping(request, folder):
    optimizer = [ADAMW] if request.param == "adamw" else []
    return train(folder, f"skipping-{request.param}", WITH_NAN, *SKIPPING, *optimizer)


def test_skipped_steps_are_reported(skipping):
    rows = metrics(skipping)
    assert sorted(rows) == list(range(STEPS + 1))
    assert {step for step, row in rows.items() if row.get("train/skipped") == 1} == SKIPPED
    for step in range(1, STEPS + 1):
        assert (rows[step][LOSS] == "NaN") == (step in SKIPPED)
        assert math.isfinite(rows[step]["val/loss"])


def test_a_skipped_step_changes_neither_weights_nor_moments_nor_biases(skipping):
    for step in range(2, STEPS + 1):
        before, after = stored(skipping, step - 1), stored(skipping, step)
        assert before.keys() == after.keys()
        if step in SKIPPED:
            assert before == after, step
            assert metrics(skipping)[step]["val/loss"] == metrics(skipping)[step - 1]["val/loss"]
        else:
            changed = {key.split("/")[0] for key in after if before[key] != after[key]}
            assert changed == {"model", "optimizer", "buffer"}, step


def test_skipped_steps_consume_rows_but_no_updates(folder, skipping):
    plain = train(folder, f"plain-{skipping.name}", "padding: false", *SKIPPING, *([ADAMW] if "adamw" in skipping.name else []))
    assert not any("train/skipped" in row for row in metrics(plain).values())
    updates = 0
    for step in range(1, STEPS + 1):
        updates += step not in SKIPPED
        state = manifest(skipping, step)["state"]
        assert state["updates"] == updates and state["data"]["rows"] == 4 * step
        assert metrics(skipping)[step]["tokens"] == 4 * 24 * step
        assert manifest(plain, step)["state"]["updates"] == step
        # The learning rate follows the schedule of the steps, not of the updates.
        rates = [{key: value for key, value in metrics(run)[step].items() if key.startswith("train/lr/")} for run in (skipping, plain)]
        assert rates[0] == rates[1] and rates[0]


def test_adamw_corrects_its_bias_by_the_number_of_updates(folder):
    run = folder / "runs/skipping-adamw"
    if not run.exists():
        run = train(folder, "skipping-adamw", WITH_NAN, *SKIPPING, ADAMW)
    names = [key.removeprefix("model/") for key in stored(run, 1) if key.startswith("model/")]
    for step in sorted(set(range(2, STEPS + 1)) - SKIPPED):
        update = step - sum(skipped < step for skipped in SKIPPED)
        rate = metrics(run)[step]["train/lr/adamw"]
        before, after = stored(run, step - 1), stored(run, step)
        for name in names:
            parts = [before[f"model/{name}"], after[f"optimizer/exp_avg/{name}"], after[f"optimizer/exp_avg_sq/{name}"]]
            expected = [(1 - rate * DECAY) * w - rate * m / (1 - BETA1**update) / (math.sqrt(v / (1 - BETA2**update)) + EPS)
                        for w, m, v in zip(*map(numbers, parts))]
            actual = numbers(after[f"model/{name}"])
            assert max(abs(a - b) for a, b in zip(actual, expected)) < 2e-6, (step, name)


@pytest.mark.parametrize("step", [2, 3, 4, 9, 11])
def test_a_run_with_skipped_steps_resumes_exactly(skipping, step):
    """Resume before and after skipped steps."""
    assert_exact_resume(skipping, step, *PLUGINS)


def test_a_run_that_skips_every_step_keeps_its_initial_weights(folder):
    run = train(folder, "all-skipped", "whole_every: 2, padding: false", *SKIPPING, "train.steps=3")
    first, last = stored(run, 1), stored(run, 3)
    assert first == last and manifest(run, 3)["state"]["updates"] == 0
    moments = [value for key, value in last.items() if key.startswith("optimizer/")]
    assert moments and not any(any(value[2]) for value in moments)
    assert metrics(run)[3]["val/loss"] == metrics(run)[0]["val/loss"]


# ---- micro-batches

def accumulated(folder, name, micro_batch, *settings):
    return train(folder, f"{name}-{micro_batch}", "longest: 9", f"train.micro_batch={micro_batch}", "train.steps=5", "train.clip=0.5",
                 ADAMW, *settings)


@pytest.mark.parametrize("name, settings", [
    ("one-depth", []),
    ("two-depths", ["model.mtp.depth=2", "model.mtp.denominator=own"]),
    ("losses", ["model.feed_forward.1.balance_alpha=0.1", "model.loss.z=0.01"]),
    ("recompute", ["model.recompute=full", "model.feed_forward.1.balance_alpha=0.1"]),
])
def test_micro_batches_of_unequal_rows_equal_the_whole_batch(name, settings, folder):
    """Rows have 0 to 24 targets, and some have none, so any mean over micro-batches would differ."""
    whole = accumulated(folder, name, 4, *settings)
    for micro_batch in (1, 2):
        parts = accumulated(folder, name, micro_batch, *settings)
        for step, row in metrics(whole).items():
            for key in {LOSS, "train/main_loss", "train/mtp_loss", "train/grad_norm", "val/loss"} & row.keys():
                assert metrics(parts)[step][key] == pytest.approx(row[key], rel=2e-5), (step, key)
        ours, theirs = stored(parts, 1), stored(whole, 1)
        assert ours.keys() == theirs.keys()
        for key in ours:
            if key.startswith("optimizer/exp_avg/"):  # (1 - beta1) times the gradient of the first step, after clipping
                assert largest_difference(ours[key], theirs[key]) < 1e-4, key
            elif key.startswith("buffer/"):  # the router biases, which depend on exact token counts
                assert ours[key] == theirs[key], key
        assert manifest(parts, 5)["state"]["data"] == manifest(whole, 5)["state"]["data"]
        assert manifest(parts, 5)["state"]["data_hash"] == manifest(whole, 5)["state"]["data_hash"]


def test_a_step_without_targets_has_no_loss_and_no_gradient(folder):
    run = train(folder, "no-targets", "longest: 9", "train.batch=1", "train.steps=4", "model.feed_forward.1.balance_alpha=0", ADAMW)
    row = metrics(run)[3]  # row 2 is only padding
    assert (row[LOSS], row["train/grad_norm"]) == (0, 0) and "train/skipped" not in row
    for key, before in stored(run, 2).items():
        if key.startswith("optimizer/exp_avg/"):
            expected = [BETA1 * value for value in numbers(before)]
            assert all(abs(a - b) <= 1e-6 * abs(b) for a, b in zip(numbers(stored(run, 3)[key]), expected)), key
    assert all(metrics(run)[step][LOSS] > 0 for step in (1, 2, 4))
