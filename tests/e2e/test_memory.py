"""Compare the memory that --dry-run predicts with the memory that training really uses.

On a CPU that is the peak memory of the process, for each row of SHAPES. On a GPU it is the peak of the fake device's
allocator, which tests/fake_cuda/test_ratchet.py measures and records in ratchet.json. A change that adds a layer, an
operator or a buffer adds a row with it.

The estimate adds up live tensors. The C library keeps freed memory for later blocks, up to 64 MiB at the end of its heap
and more in gaps, so a process can use more. Runs with recomputation and temporary tensors of 4 to 32 MiB are the worst
known case: with 256 features, 8 layers and micro-batches of 16 x 256 tokens, 590 MB instead of 450.
"""

import json
import os
import re
import subprocess

import pytest

from support import RUN, SOURCE, make_tiny

TOLERANCE = 0.1
RATCHET = SOURCE / "tests/fake_cuda/ratchet.json"

MLA = "{plugin: mla, heads: 4, q_lora_rank: 128, kv_lora_rank: 128, qk_nope_dim: 32, qk_rope_dim: 32, v_dim: 64}"
MHA = "{plugin: mha, heads: 8}"
GQA = "{plugin: mha, heads: 8, kv_heads: 2, qk_norm: true}"
MOE = "{plugin: moe, routed: 8, top_k: 2, shared: 1, hidden: 128}"
NO_SHARED = "{plugin: moe, routed: 16, top_k: 4, shared: 0, hidden: 96, balance_alpha: 0}"

# Name: model.hidden, model.layers, model.vocab, attention, feed_forward, MTP depth, train.micro_batch, train.sequence,
# and other settings. Each run takes two steps of a few hundred milliseconds to a few seconds.
SHAPES = {
    "dense": (256, 4, 4096, MHA, "swiglu", 0, 8, 256),
    "dense, long rows": (256, 4, 4096, MHA, "swiglu", 0, 2, 1024),
    "wide, recomputed": (768, 4, 4096, MHA, "swiglu", 0, 2, 256, "model.recompute=full"),
    "dense, bf16": (256, 6, 4096, MHA, "swiglu", 0, 8, 256, "train.precision=bf16"),
    "wide": (768, 2, 4096, MHA, "swiglu", 0, 2, 256),
    "deep": (128, 16, 1024, MHA, "swiglu", 0, 8, 256),
    "grouped queries": (256, 4, 4096, GQA, "swiglu", 0, 8, 256),
    "large vocabulary": (128, 2, 65536, MHA, "swiglu", 0, 4, 256),
    "latents": (256, 4, 4096, MLA, "swiglu", 0, 8, 256),
    "experts": (256, 4, 4096, MLA, MOE, 0, 8, 256),
    "experts, MTP": (256, 3, 8192, MLA, MOE, 1, 8, 256),
    "experts, MTP, recomputed": (256, 6, 8192, MLA, MOE, 2, 8, 256, "model.recompute=full"),
    "latents, bf16, tied head": (256, 4, 16384, MLA, "swiglu", 1, 8, 256, "train.precision=bf16", "model.tied_head=true"),
    "many experts": (256, 3, 4096, MHA, NO_SHARED, 0, 8, 256),
    "muon": (512, 3, 2048, MHA, "swiglu", 0, 2, 256,
             "optimizer=[{role: matrix, plugin: muon, lr: 0.01}, {plugin: adamw, lr: 1.0e-3}]"),
    "accumulated": (256, 4, 4096, MHA, "swiglu", 0, 4, 256, "train.batch=16"),
}


def settings(hidden, layers, vocab, attention, feed_forward, depth, rows, length, *others):
    words = {"model.hidden": hidden, "model.layers": layers, "model.vocab": vocab, "model.attention": attention,
             "model.feed_forward": feed_forward, "model.mtp.depth": depth, "train.batch": rows, "train.micro_batch": rows,
             "train.sequence": length, "train.steps": 2, "train.threads": 1, "optimizer": "adamw", "schedule.warmup": 0,
             "validation.batches": 1, "validation.every": 0}
    return [*(f"{name}={value}" for name, value in words.items()), *others]


def bytes_of(text):
    number, unit = text.split()
    return float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]


def predicted(folder, words):
    done = subprocess.run([RUN, *words, "--dry-run"], cwd=folder, text=True, capture_output=True, check=True)
    return bytes_of(re.search(r"^memory .*: ([\d.]+ [kMGT]B)$", done.stdout, re.M)[1])


def used(folder, words):
    """Return the peak memory of a run's process in bytes."""
    with open(folder / "log.txt", "w+") as log:
        process = subprocess.Popen([RUN, *words], cwd=folder, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        assert process.returncode == 0, log.read()
    return usage.ru_maxrss * 1024


def require_close(estimate, actual):
    assert abs(estimate / actual - 1) <= TOLERANCE, f"predicted {estimate / 1e6:.0f} MB, used {actual / 1e6:.0f} MB"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_on_the_cpu_uses_the_predicted_memory(tmp_path, shape):
    make_tiny(tmp_path)
    words = ["tiny.yaml", *settings(*SHAPES[shape])]
    require_close(predicted(tmp_path, words), used(tmp_path, words))


@pytest.mark.parametrize("run", [name for name in json.loads(RATCHET.read_text())])
def test_a_run_on_a_gpu_uses_the_predicted_memory(run):
    """Compare the two numbers that test_ratchet.py has measured in the same run."""
    numbers = json.loads(RATCHET.read_text())[run]
    require_close(numbers["dry_run_gb"] * 1e9, numbers["peak_gb"] * 1e9)
