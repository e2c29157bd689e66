"""Three training steps on the fake device match those on the CPU, for every pair of options in FACTORS."""

import itertools

import pytest

from support import make_tiny, metrics, on_cpu, statistics, train

FACTORS = {
    "attention": {"mla": [], "mha": ["attention={plugin: mha, heads: 2, head_dim: 16}"]},
    "optimizer": {"adamw": ["optimizer={plugin: adamw, lr: 5.0e-3}"], "muon": ["optimizer.1.ns_dtype=fp32"]},
    "precision": {"fp32": ["train.precision=fp32"], "bf16": ["train.precision=bf16"]},
    "recompute": {"none": [], "full": ["model.recompute=full"]},
    "rows": {"packed": [], "whole": ["data={plugin: synthetic}", "model.vocab=260"]},
}
# Every pair of values of two factors occurs in at least one of these runs.
RUNS = [
    ("mla", "adamw", "fp32", "none", "packed"),
    ("mla", "muon", "bf16", "full", "whole"),
    ("mha", "adamw", "bf16", "full", "packed"),
    ("mha", "muon", "fp32", "none", "whole"),
    ("mla", "muon", "fp32", "full", "packed"),
    ("mha", "adamw", "bf16", "none", "whole"),
    ("mla", "adamw", "bf16", "none", "packed"),
]
SMALL = ["train.steps=3", "schedule.warmup=0", "train.batch=4", "train.micro_batch=2", "train.sequence=32",
         "validation.every=3", "checkpoint.every=0"]
# In fp32, only the order of additions differs. In bf16, both devices round every intermediate value.
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}


def test_all_pairs_are_covered():
    names = list(FACTORS)
    covered = {(a, run[a], b, run[b]) for run in RUNS for a, b in itertools.combinations(range(len(names)), 2)}
    for a, b in itertools.combinations(range(len(names)), 2):
        for one, other in itertools.product(FACTORS[names[a]], FACTORS[names[b]]):
            assert (a, one, b, other) in covered, (one, other)


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_steps_equal_those_of_the_cpu(tmp_path, run):
    make_tiny(tmp_path)
    words = ["tiny.yaml", *SMALL, *(word for name, value in zip(FACTORS, run) for word in FACTORS[name][value])]
    train(*words, "--run_name", "device", cwd=tmp_path, FAKE_CUDA_LOG=tmp_path / "log.json")
    on_cpu("dsv3-run", *words, "train.device=cpu", "--run_name", "cpu", cwd=tmp_path)
    assert statistics(tmp_path / "log.json")["operators"], "nothing ran on the device"
    device, cpu = metrics(tmp_path / "runs/device"), metrics(tmp_path / "runs/cpu")
    assert sorted(device) == sorted(cpu) == [0, 1, 2, 3]
    compared = ("train/loss", "train/total_loss", "train/mtp_loss", "train/grad_norm", "val/loss")
    for step, row in cpu.items():
        for name in compared:
            if name in row:
                assert device[step][name] == pytest.approx(row[name], rel=TOLERANCE[run[2]]), (step, name)
