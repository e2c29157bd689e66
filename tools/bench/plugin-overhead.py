"""Training steps with components loaded from plugins against the same classes linked into the program.

    tools/dev bench plugin-overhead [--rounds N] [--file EXPERIMENT]

Both models train in one process, a step each in turn, on the same batch; their losses must be equal bit for bit. The
ratio of the steps is noisier than the effect, so the cost of a virtual call into the loaded library is measured as well
and multiplied by (more than) the calls of a step.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENT = """\
dsv3: 1
model:
  hidden: 256
  layers: 4
  vocab: 2048
  attention: {plugin: mla, heads: 4, q_lora_rank: 0, kv_lora_rank: 64, qk_nope_dim: 32, qk_rope_dim: 32, v_dim: 64}
  position: {plugin: rope}
  feed_forward:
    - {layers: 0, plugin: swiglu, hidden: 704}
    - {layers: 1-, plugin: moe, routed: 8, top_k: 2, shared: 1, hidden: 128}
  mtp: {depth: 1}
optimizer: {plugin: adamw, lr: 3.0e-4}
schedule: {plugin: constant}
strategy: {plugin: single}
data: {plugin: synthetic}
train: {steps: 1, batch: 4, sequence: 256, precision: fp32, device: cpu, threads: 1}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--file", help="an experiment of mla, swiglu, moe, rope, adamw and single")
    a = parser.parse_args()
    subprocess.run(["ninja", "-C", ROOT / "build", "--quiet", "plugin_overhead"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        file = a.file or pathlib.Path(folder) / "bench.yaml"
        if not a.file:
            file.write_text(EXPERIMENT)
        done = subprocess.run([ROOT / "build/bin/plugin_overhead", file, str(a.rounds)], check=True, text=True,
                              stdout=subprocess.PIPE)
    r = json.loads(done.stdout)
    low, high = r["ratio_quartiles"]
    bound = r["calls_a_step"] * r["loaded_call_ns"] * 1e-9 / r["linked_step_s"]
    print(f"median of {r['rounds']} rounds, {r['threads']} thread(s)")
    print(f"{'':10}{'step ms':>10}{'call ns':>10}")
    for side in "loaded", "linked":
        print(f"{side:10}{r[side + '_step_s'] * 1e3:10.2f}{r[side + '_call_ns']:10.2f}")
    print(f"RATIO step loaded/linked {r['ratio_median']:.4f} (quartiles {low:.4f} to {high:.4f})")
    print(f"BOUND at most {r['calls_a_step']} calls a step x {r['loaded_call_ns']:.2f} ns = {100 * bound:.5f} % of a step")


if __name__ == "__main__":
    main()
