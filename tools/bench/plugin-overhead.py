"""Compare the cost of training steps with loaded plugins and with the same classes linked into the program.

    tools/dev bench plugin-overhead [--time [--blocks N]] [--rounds N] [--file EXPERIMENT]

Both models train in one process on one thread, on the same batch, in the order loaded, linked, linked, loaded. Their
losses must be bit-identical. Valgrind's callgrind counts the instructions of each side's steps, because a count, unlike
time, does not change on a busy machine. With --time, the thread's CPU time is measured instead, and each round yields
one ratio. Every block creates both models again, because the addresses of their tensors affect the time more than the
linking does. The confidence interval is a bootstrap over the blocks and the rounds in each block.
"""

import argparse
import json
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 1.001  # loading plugins may add at most 0.1 % to the cost of a step
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
    """Return the 95 % confidence interval of the median ratio. `blocks` is a list of lists of ratios."""
    rng = random.Random(1)
    medians = sorted(statistics.median([ratio for block in rng.choices(blocks, k=len(blocks))
                                        for ratio in rng.choices(block, k=len(block))]) for _ in range(samples))
    return medians[int(0.025 * samples)], medians[int(0.975 * samples) - 1]


def judge(low, high):
    if high < LIMIT:
        print(f"VERDICT loading plugins costs less than 0.1 % of a step: the ratio is below {LIMIT}")
    elif low > LIMIT:
        print(f"VERDICT loading plugins costs more than 0.1 % of a step: the ratio is above {LIMIT}")
    else:
        print(f"VERDICT inconclusive: the confidence interval contains {LIMIT}")


def compare_instructions(command, rounds, folder):
    if not shutil.which("valgrind"):
        sys.exit("error: valgrind not found; install it with apt-get install valgrind, or measure with --time")
    counts = folder / "callgrind.out"
    subprocess.run(["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={counts}", "--collect-atstart=no",
                    "--toggle-collect=*loaded_step*", "--toggle-collect=*linked_step*", *command, "1", str(rounds)],
                   check=True, stdout=subprocess.DEVNULL)
    table = subprocess.run(["callgrind_annotate", "--inclusive=yes", counts], check=True, text=True,
                           stdout=subprocess.PIPE).stdout
    loaded, linked = (int(re.search(rf"([\d,]+) .*::{side}_step\(", table)[1].replace(",", "")) / (2 * rounds)
                      for side in ("loaded", "linked"))
    print(f"loaded {loaded:14,.0f} instructions per step\nlinked {linked:14,.0f} instructions per step")
    print(f"RATIO loaded/linked {loaded / linked:.5f} ({2 * rounds} pairs of steps)")
    judge(loaded / linked, loaded / linked)


def compare_times(command, blocks, rounds):
    done = subprocess.run([*command, str(blocks), str(rounds)], check=True, text=True, stdout=subprocess.PIPE)
    times = json.loads(done.stdout)
    pairs = [pair for block in times for pair in block]
    for side, i in ("loaded", 0), ("linked", 1):
        print(f"{side} {statistics.median(pair[i] for pair in pairs) / 2:10.3f} ms of CPU time per step")
    ratios = [[loaded / linked for loaded, linked in block] for block in times]
    low, high = interval(ratios)
    print(f"RATIO loaded/linked {statistics.median(sum(ratios, [])):.5f}, "
          f"95 % confidence interval {low:.5f} to {high:.5f} ({2 * len(pairs)} pairs of steps in {blocks} blocks)")
    judge(low, high)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="measure CPU time instead of counting instructions")
    parser.add_argument("--blocks", type=int, default=20, help="blocks with --time (default 20)")
    parser.add_argument("--rounds", type=int,
                        help="rounds per block, each with two steps per side (default 2; 100 with --time)")
    parser.add_argument("--file", help="experiment file; must use mla, swiglu, moe, rope, adamw and single")
    a = parser.parse_args()
    subprocess.run(["ninja", "-C", ROOT / "build", "--quiet", "plugin_overhead"], check=True)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        file = a.file or folder / "bench.yaml"
        if not a.file:
            file.write_text(EXPERIMENT)
        command = [ROOT / "build/bin/plugin_overhead", file]
        if a.time:
            compare_times(command, a.blocks, a.rounds or 100)
        else:
            compare_instructions(command, a.rounds or 2, folder)


if __name__ == "__main__":
    main()
