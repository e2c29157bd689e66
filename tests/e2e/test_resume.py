"""Runs of many combinations of components resume bit-identically from a step in the middle.

By default, a tenth of all combinations, which contains every pair of values. With DSV3_TEST_FULL=1, all of them.
"""

import itertools
import os
import random
import struct

import pytest

from runs import assert_exact_resume
from support import SEED, dsv3_run, make_tiny

STEPS = 6
ADAMW = "optimizer={plugin: adamw, lr: 5.0e-3}"
VALUES = {  # the settings for each value of each factor; tiny.yaml has the others
    "attention": {"mla": [], "mha": ["model.attention={plugin: mha, heads: 2, head_dim: 16}"]},
    "feed_forward": {"swiglu": ["model.feed_forward={plugin: swiglu, hidden: 48}", "model.mtp.depth=0"], "moe+mtp": []},
    "optimizer": {"adamw": [ADAMW], "muon": []},
    "data": {"text": [], "tokens": ["data={plugin: tokens, path: ids.bin, eos: 1}", "data.tokenizer=null", "model.vocab=64"],
             "synthetic": ["data={plugin: synthetic, symbols: 16}", "data.tokenizer=null", "model.vocab=64"]},
    "recompute": {"none": [], "full": ["model.recompute=full"]},
    "accumulation": {"1": [], "4": ["train.micro_batch=1"]},
}
ALL = [dict(zip(VALUES, values)) for values in itertools.product(*VALUES.values())]


def pairs_in(combination):
    return set(itertools.combinations(combination.items(), 2))


def pairwise(rng, count):
    """Return at least `count` of all combinations, chosen greedily so that they contain every pair of values."""
    missing, chosen, rest = set().union(*map(pairs_in, ALL)), [], rng.sample(ALL, len(ALL))
    while missing or len(chosen) < count:
        chosen.append(max(rest, key=lambda combination: len(pairs_in(combination) & missing)))
        rest.remove(chosen[-1])
        missing -= pairs_in(chosen[-1])
    return chosen


def combinations():
    return ALL if os.environ.get("DSV3_TEST_FULL") == "1" else pairwise(random.Random(SEED), len(ALL) // 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    make_tiny(folder)
    rng = random.Random(3)
    ids = [1 if rng.random() < 0.05 else rng.randrange(2, 64) for _ in range(6000)]
    (folder / "ids.bin").write_bytes(struct.pack(f"<{len(ids)}H", *ids))
    return folder


def test_the_default_combinations_contain_every_pair_of_values():
    for seed in range(20):
        chosen = pairwise(random.Random(seed), len(ALL) // 10)
        assert set().union(*map(pairs_in, chosen)) == set().union(*map(pairs_in, ALL))
        assert len(chosen) <= 12


@pytest.mark.parametrize("number, values", list(enumerate(combinations())), ids=lambda v: "-".join(v.values()) if isinstance(v, dict) else str(v))
def test_resume(number, values, folder):
    step = random.Random(SEED + number).randrange(1, STEPS)
    print(f"DSV3_TEST_SEED={SEED}, from step {step}, {values}")
    settings = [setting for factor, value in values.items() for setting in VALUES[factor][value]]
    dsv3_run("tiny.yaml", *settings, f"train.steps={STEPS}", "schedule.warmup=2", "validation.every=1", "validation.batches=1",
             "checkpoint.every=1", "checkpoint.keep_best=50", "--run_name", f"run{number}", cwd=folder)
    assert_exact_resume(folder / f"runs/run{number}", step)
