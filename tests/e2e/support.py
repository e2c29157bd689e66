"""Run the programs as a user would, and read their output files."""

import hashlib
import json
import os
import pathlib
import random
import struct
import subprocess

SOURCE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DSV3_BUILD_DIR", SOURCE / "build"))
RUN = BUILD / "bin/dsv3-run"
SEED = int(os.environ.get("DSV3_TEST_SEED", random.SystemRandom().randrange(10**9)))

# An experiment with every component of a DeepSeek-V3-style model. It trains at about a hundred steps per second.
TINY = """\
dsv3: 1
name: tiny
model:
  hidden: 32
  layers: 3
  vocab: auto
  init: {std: 0.05}
  attention: {plugin: mla, heads: 2, q_lora_rank: 16, kv_lora_rank: 16, qk_nope_dim: 8, qk_rope_dim: 8, v_dim: 16}
  position: {plugin: rope}
  feed_forward:
    - {layers: 0, plugin: swiglu, hidden: 64}
    - {layers: 1-, plugin: moe, routed: 4, top_k: 2, shared: 1, hidden: 16}
  mtp: {depth: 1, weight: 0.3}
optimizer:
  - {role: [embedding, head, norm, router, bias], plugin: adamw, lr: 5.0e-3}
  - {role: matrix, plugin: muon, lr: 0.02}
schedule: {plugin: cosine, warmup: 5}
strategy: {plugin: single}
data: {plugin: text, path: text.txt, tokenizer: {plugin: bytes}}
train: {steps: 30, batch: 4, sequence: 48, precision: fp32, seed: 7, log_every: 1, threads: 1}
validation: {every: 10, batches: 2, share: 0.1}
samples: {every: 0}
checkpoint: {every: 3, keep_best: 2}
tracker: [{plugin: csv}]
"""


def make_tiny(folder):
    """Write tiny.yaml and its training text to `folder` and return the path of tiny.yaml."""
    rng = random.Random(5)
    words = "the quick brown fox jumps over a lazy dog while seven wizards mix potions near old stone bridges".split()
    paragraphs = ["\n".join(" ".join(rng.choices(words, k=9)) + "." for _ in range(rng.randrange(2, 7)))
                  for _ in range(120)]
    (folder / "text.txt").write_text("\n\n".join(paragraphs) + "\n")
    (folder / "tiny.yaml").write_text(TINY)
    return folder / "tiny.yaml"


def dsv3_run(*arguments, cwd, check=0, timeout=300):
    """Run dsv3-run and assert its exit code unless `check` is None."""
    done = subprocess.run([RUN, *map(str, arguments)], cwd=cwd, text=True, capture_output=True, timeout=timeout)
    if check is not None:
        assert done.returncode == check, f"exit {done.returncode}, not {check}:\n{done.stdout}\n{done.stderr}"
    return done


def seal(library):
    """Replace the digest at the end of a plugin library, as the build does after linking it."""
    content = library.read_bytes()
    if content[-79:].startswith(b"@dsv3-sha256@ "):
        content = content[:-79]
    library.write_bytes(content + b"@dsv3-sha256@ " + hashlib.sha256(content).hexdigest().encode() + b"\n")


def header_hash(content):
    """Return the checksum for a shard's header."""
    mask = 2**64 - 1
    state = len(content)
    for i in range(0, len(content), 8):
        state = (state ^ int.from_bytes(content[i:i + 8], "little")) * 0x9e3779b97f4a7c15 & mask
        state = (state << 29 | state >> 35) & mask

    def mix(x):
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9 & mask
        x = (x ^ x >> 27) * 0x94d049bb133111eb & mask
        return x ^ x >> 31
    return mix((mix(state) ^ 0) + 0x9e3779b97f4a7c15 & mask)


def metrics(run):
    """Return the metrics in metrics.jsonl, by step. Lines for the same step are merged."""
    by_step = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        by_step.setdefault(row["step"], {}).update(row)
    return by_step


def losses(run):
    """Return the metrics that must be bit-identical: all except times, rates, memory and the machine's."""
    skip = ("time", "throughput/", "data/", "memory/", "system/")
    return {step: {k: v for k, v in row.items() if not k.startswith(skip)} for step, row in metrics(run).items()}


def tensors(checkpoint, file="rank-00000.safetensors"):
    """Return the bytes of every tensor in a file of a checkpoint folder, by name."""
    data = (checkpoint / file).read_bytes()
    size, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    return {name: (entry["dtype"], entry["shape"], data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]])
            for name, entry in header.items() if name != "__metadata__"}


def last_checkpoint(run):
    return max((run / "checkpoints").glob("step-*"), key=lambda p: int(p.name.split("-")[1]))
