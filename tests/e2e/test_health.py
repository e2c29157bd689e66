"""The health callback names the cause of each of six planted faults, and is silent on healthy runs."""

import os
import random
import re

import pytest

from support import BUILD, SEED, dsv3_run, make_tiny, metrics

FULL = os.environ.get("DSV3_TEST_FULL") == "1"
FAULTS = BUILD / "tests/plugins/faults"

DENSE = "feed_forward={plugin: swiglu, hidden: 64}"
# 30 steps are too few for the default bias_rate to balance the experts.
EXPERTS = "feed_forward={plugin: moe, routed: %d, top_k: 2, shared: 1, hidden: 16, %s}"
BALANCED = EXPERTS % (8, "bias_rate: 0.02")
ADAMW = "optimizer={plugin: adamw, lr: %s}"


def muon(lr, adamw_lr=5e-3, router_lr=5e-3):
    return (f"optimizer=[{{role: router, plugin: adamw, lr: {router_lr}}}, "
            f"{{role: [embedding, head, norm, bias], plugin: adamw, lr: {adamw_lr}}}, "
            f"{{role: matrix, plugin: muon, lr: {lr}}}]")


HEALTHY = {
    "mla, muon and experts": [BALANCED],
    "another seed": [BALANCED, "train.seed=11"],
    "learning rate / 4": [BALANCED, muon(5e-3, 1.25e-3, 1.25e-3)],
    "learning rate x 2": [BALANCED, muon(0.04, 1e-2, 1e-2)],
    "no warm-up": [BALANCED, "schedule.warmup=0"],
    "long warm-up": [BALANCED, "schedule.warmup=20"],
    "constant learning rate": [BALANCED, "schedule=constant"],
    "adamw": [BALANCED, ADAMW % 5e-3],
    "adamw, learning rate / 10": [BALANCED, ADAMW % 5e-4],
    "mha": [BALANCED, "attention=mha"],
    "grouped-query attention": [DENSE, "attention={plugin: mha, heads: 4, kv_heads: 2, qk_norm: true}"],
    "dense, adamw": [DENSE, "attention=mha", ADAMW % 3e-3],
    "dense, muon": [DENSE],
    "bf16": [BALANCED, "train.precision=bf16"],
    "16 experts": [EXPERTS % (16, "bias_rate: 0.02")],
    "balance loss instead of bias": [EXPERTS % (4, "bias_rate: 0, balance_alpha: 0.1")],
    "frozen bias": [EXPERTS % (8, "bias_rate: 0.02, bias_until: 0.8")],
    "wider, logged every 5 steps": [DENSE, "model.hidden=96", "model.layers=6", "train.log_every=5"],
    "small initial weights": [BALANCED, "model.init.std=0.02"],
    "synthetic data": [BALANCED, "data={plugin: synthetic}", "data.tokenizer=null", "model.vocab=64"],
    "separate matrices in one parameter": [BALANCED, "model.init.std=0.02",
                                           "attention={plugin: fused, heads: 2, kv_heads: 2, matrices: 3}"],
    "accumulation without MTP": [BALANCED, "train.batch=8", "train.micro_batch=4", "model.mtp.depth=0"],
}

FAULTY = {
    "balance bias never updated": (
        "the routing bias that should balance the experts is not updated",
        [EXPERTS % (8, "bias_rate: 0, balance_alpha: 0")]),
    "router collapse": (
        "the router has collapsed",
        [EXPERTS % (8, "balance_alpha: 0"), muon(0.02, router_lr=0.3)]),
    "learning rate x 30, adamw": ("the learning rate is too high", [BALANCED, ADAMW % 0.15]),
    "learning rate x 30, muon": ("the learning rate is too high", [BALANCED, muon(0.6, 0.15, 0.15)]),
    "exploding logits": (
        "the attention logits explode",
        [BALANCED, "attention={plugin: fused, heads: 2, kv_heads: 2, matrices: 3, scale: 400}"]),
    "dead layer": (
        "a part of the layer does not affect the loss",
        ["feed_forward=[{layers: 0, plugin: swiglu, hidden: 64}, {layers: 1, plugin: detached}, "
         "{layers: 2-, plugin: swiglu, hidden: 64}]"]),
    "muon on a fused matrix": (
        "a matrix that consists of several",
        [BALANCED, "model.init.std=0.02", "attention={plugin: fused, heads: 2, kv_heads: 2}"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("health")
    make_tiny(folder)
    return folder


def alarms(folder, name, overrides, options=""):
    """Train and return the health callback's warnings."""
    run = re.sub(r"\W+", "-", name)
    done = dsv3_run("tiny.yaml", f"callback=[{{plugin: health{options}}}]", "tracker=[]", "checkpoint.every=0", "validation.every=0",
                    *overrides, "--plugin-path", FAULTS, "--run_name", run, cwd=folder)
    return [line.split("health: ", 1)[1] for line in done.stderr.splitlines() if "health: " in line]


@pytest.mark.parametrize("fault", FAULTY)
def test_health_names_the_cause_of_a_fault_first(folder, fault):
    cause, overrides = FAULTY[fault]
    found = alarms(folder, fault, overrides)
    assert found and found[0].startswith(cause), found


@pytest.mark.parametrize("name", HEALTHY if FULL else random.Random(SEED).sample(sorted(HEALTHY), 5))
def test_health_is_silent_on_healthy_runs(folder, name):
    assert alarms(folder, name, HEALTHY[name]) == [], f"DSV3_TEST_SEED={SEED}"


def test_health_records_statistics_by_layer(folder):
    alarms(folder, "statistics", [BALANCED], ", max_layers: 2")
    rows = metrics(folder / "runs/statistics")
    keys = {key for key in rows[3] if key.startswith("health/")}
    per_layer = {"grad_rms", "update_rms", "weight_rms", "zero_gradients"}
    assert {f"health/{name}/{layer}" for name in per_layer for layer in ("0", "1", "rest")} <= keys
    assert "health/block_ratio/1" in keys and "health/grad_rms/2" not in keys
    assert 0 < rows[3]["health/update_rms/1"] < rows[3]["health/weight_rms/1"]
    assert rows[3]["health/alarms"] == 0
