"""The health callback names the cause of each of six planted faults and is silent on healthy runs."""

import os
import random
import re

import pytest

from support import BUILD, SEED, dsv3_run, make_tiny, metrics

FAULTS = BUILD / "tests/plugins/faults"

DENSE = "feed_forward={plugin: swiglu, hidden: 64}"
EXPERTS = "feed_forward={plugin: moe, routed: 8, top_k: 2, shared: 1, hidden: 16%s}"
ADAMW = "optimizer={plugin: adamw, lr: %s}"
MUON = "optimizer={plugin: muon, lr: %s%s}"

HEALTHY = {
    "mla, muon, experts": [],
    "another seed": ["train.seed=11"],
    "learning rate / 4": [MUON % (0.005, "")],
    "learning rate x 2": [MUON % (0.04, "")],
    "no warm-up": ["schedule.warmup=0"],
    "long warm-up": ["schedule.warmup=40"],
    "constant learning rate": ["schedule=constant"],
    "wsd": ["schedule=wsd"],
    "adamw": [ADAMW % 5e-3],
    "adamw, learning rate / 10": [ADAMW % 5e-4],
    "mha": ["attention=mha"],
    "grouped-query attention": ["attention={plugin: mha, heads: 4, kv_heads: 2, qk_norm: true}", DENSE],
    "dense, adamw": ["attention=mha", DENSE, ADAMW % 3e-3],
    "dense, muon": [DENSE],
    "bf16": ["train.precision=bf16"],
    "16 experts": [EXPERTS.replace("routed: 8", "routed: 16") % ""],
    "balance loss without bias": [EXPERTS % ", bias_rate: 0, balance_alpha: 0.01"],
    "frozen bias": [EXPERTS % ", bias_until: 0.7"],
    "larger model, logged every 5 steps": ["model.hidden=96", "model.layers=6", DENSE, "train.log_every=5"],
    "small initial weights": ["model.init.std=0.02", "model.attention.muon_split=per_head"],
    "synthetic data": ["data={plugin: synthetic}", "data.tokenizer=null", "model.vocab=64"],
    "untouched gradients": ["train.clip=0"],
    "larger batch": ["train.batch=16", "train.micro_batch=4", "mtp.depth=0"],
}

CAUSES = {
    "balance bias never updated": ("bias", [EXPERTS % ", bias_rate: 0, balance_alpha: 0"]),
    "router collapse": ("collapse", [EXPERTS % ", balance_alpha: 0",
                        "optimizer=[{role: router, plugin: adamw, lr: 0.5}, {role: [embedding, head, norm, bias], plugin: adamw, lr: 5.0e-3}, {role: matrix, plugin: muon, lr: 0.02}]"]),
    "learning rate x 30, adamw": ("learning_rate", [ADAMW % 0.15]),
    "learning rate x 30, muon": ("learning_rate", [MUON % (0.6, ", adamw_lr: 0.15")]),
    "exploding logits": ("logits", ["attention={plugin: fused, heads: 2, kv_heads: 2, matrices: 3, scale: 400}"]),
    "dead layer": ("dead_layer", ["feed_forward=[{layers: '0,2', plugin: swiglu, hidden: 64}, {layers: 1, plugin: detached}]"]),
    "muon on a fused matrix": ("fused", ["attention={plugin: fused, heads: 2, kv_heads: 2}"]),
}
