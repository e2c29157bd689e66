"""Training steps with components loaded from plugins against the same classes linked into the program.

    tools/dev bench plugin-overhead [--blocks N] [--rounds N] [--file EXPERIMENT]

Both models train in one process on one thread, on the same batch, in the order loaded, linked, linked, loaded; their
losses must be equal bit for bit. A step's cost is the user instructions that it retires where the machine counts them,
else the thread's CPU time. A round gives one ratio; every block makes both models anew, for where their tensors lie
decides more than how they are linked. The interval is a bootstrap's over blocks and over the rounds in them.
"""

import argparse
import json
import pathlib
import random
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 1.001  # a plugin may cost 0.1 % of a step
EXPERIMENT = """\
dsv3: 1
model:
  hidden: 64
  layers: 3
  vocab: 512
  attention: {plugin: mla, heads: 2, q_lora_rank: 0, kv_lora_rank: 32, qk_nope_dim: 32, qk_rope_dim: 32, v_dim: 32}
  position: {plugin: rope}
  feed_forward:
    - {layers: 0, plugin: swiglu, hidden: 192}
    - {layers: 1-, plugin: moe, routed: 4, top_k: 2, shared: 1, hidden: 64}
  mtp: {depth: 1}
optimizer: {plugin: adamw, lr: 3.0e-4}
schedule: {plugin: constant}
strategy: {plugin: single}
data: {plugin: synthetic}
train: {steps: 1, batch: 2, sequence: 128, precision: fp32, device: cpu, threads: 1}
"""


def interval(blocks, samples=2000):
    """Of the median ratio, with 95 % confidence; `blocks` are lists of ratios."""
    rng = random.Random(1)
    medians = sorted(statistics.median([ratio for block in rng.choices(blocks, k=len(blocks))
                                        for ratio in rng.choices(block, k=len(block))]) for _ in range(samples))
    return medians[int(0.025 * samples)], medians[int(0.975 * samples) - 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=100, help="of a block; a round is two steps of each side")
    parser.add_argument("--file", help="an experiment of mla, swiglu, moe, rope, adamw and single")
    a = parser.parse_args()
    subprocess.run(["ninja", "-C", ROOT / "build", "--quiet", "plugin_overhead"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        file = a.file or pathlib.Path(folder) / "bench.yaml"
        if not a.file:
            file.write_text(EXPERIMENT)
        done = subprocess.run([ROOT / "build/bin/plugin_overhead", file, str(a.blocks), str(a.rounds)], check=True,
                              text=True, stdout=subprocess.PIPE)
    result = json.loads(done.stdout)
    rounds = [pair for block in result["blocks"] for pair in block]
    for side, i in ("loaded", 0), ("linked", 1):
        print(f"{side} {statistics.median(pair[i] for pair in rounds) / 2:14,.3f} {result['unit']} a step")
    ratios = [[loaded / linked for loaded, linked in block] for block in result["blocks"]]
    low, high = interval(ratios)
    print(f"RATIO loaded/linked {statistics.median(sum(ratios, [])):.5f}, 95 % interval {low:.5f} to {high:.5f} "
          f"({2 * len(rounds)} pairs of steps in {a.blocks} blocks)")
    if high < LIMIT:
        print(f"VERDICT loading costs less than 0.1 % of a step: the interval ends below {LIMIT}")
    else:
        print(f"VERDICT not resolved: the interval does not end below {LIMIT}")


if __name__ == "__main__":
    main()
