"""Compare the memory and the traffic of strategies with their estimates, with 1, 2 and 4 ranks as processes.

    tools/dev bench strategies [--optimizer adamw|muon] [--tied] [--precision fp32|bf16] [--mtp DEPTH] [--ranks N ...]

Each rank trains two steps of a model with about 30 million parameters and few tokens, on one thread. A counting
allocator measures the peak of its tensors in the second step, and a counting communicator the bytes that it sends.
Prints the rank with the highest values. Exits with 1 if an estimate of memory is off by more than 10 %, or one of
traffic by more than 5 %.
"""

import argparse
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build/bin/strategy_costs"

STRATEGIES = {
    1: ["{plugin: single}"],
    2: ["{plugin: ddp}", "{plugin: zero, stage: 1}", "{plugin: zero, stage: 2}", "{plugin: zero, stage: 3}"],
    4: ["{plugin: ddp}", "{plugin: zero, stage: 1}", "{plugin: zero, stage: 2}", "{plugin: zero, stage: 3}",
        "{plugin: zero, stage: 2, shard: 2}", "{plugin: zero, stage: 3, shard: 2}",
        "{plugin: zero, stage: 3, reshard_after_forward: false}"],
}
OPTIMIZERS = {
    "adamw": "{plugin: adamw, lr: 1.0e-3}",
    "muon": "[{plugin: muon, role: matrix, lr: 1.0e-3}, {plugin: adamw, lr: 1.0e-3}]",
}


def experiment(a, strategy, ranks):
    return f"""\
dsv3: 1
name: bench
model:
  hidden: 512
  layers: 6
  vocab: 8192
  tied_head: {str(a.tied).lower()}
  attention: {{plugin: mla, heads: 8, q_lora_rank: 0, kv_lora_rank: 128, qk_nope_dim: 32, qk_rope_dim: 32, v_dim: 64}}
  position: {{plugin: rope}}
  feed_forward: {{plugin: swiglu, hidden: 1408}}
  mtp: {{depth: {a.mtp}}}
optimizer: {OPTIMIZERS[a.optimizer]}
schedule: {{plugin: constant}}
strategy: {strategy}
data: {{plugin: synthetic}}
train: {{steps: 2, batch: {ranks}, micro_batch: 1, sequence: 64, precision: {a.precision}, device: cpu, threads: 1}}
"""


def run_ranks(file, ranks):
    """Return what each rank measured."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    processes = []
    for rank in range(ranks):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        processes.append(subprocess.Popen([PROGRAM, file], env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("error: a rank failed")
    return [json.loads(output) for output in outputs]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="muon")
    parser.add_argument("--tied", action="store_true", help="share the weights of the embedding and the head")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--mtp", type=int, default=1, help="number of MTP modules")
    parser.add_argument("--ranks", type=int, nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    a = parser.parse_args()
    subprocess.run(["ninja", "-C", ROOT / "build", "--quiet", "strategy_costs"], check=True)
    print(f"optimizer {a.optimizer}, {a.precision}, {'tied' if a.tied else 'untied'} head, {a.mtp} MTP module(s)")
    print(f"{'ranks':>5}  {'strategy':42}{'peak MB':>9}{'estimate':>9}{'off':>8}{'sent MB':>9}{'estimate':>9}{'off':>8}")
    exact = True
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "bench.yaml"
        for ranks in a.ranks:
            for strategy in STRATEGIES[ranks]:
                file.write_text(experiment(a, strategy, ranks))
                results = run_ranks(file, ranks)
                line = f"{ranks:5}  {strategy[1:-1].removeprefix('plugin: '):42}"
                for quantity, limit in ("peak", 0.1), ("sent", 0.05):
                    measured = max(result[quantity] for result in results)
                    estimate = results[0][quantity + "_estimate"]
                    off = estimate / measured - 1 if measured else float(estimate != 0)
                    exact &= abs(off) <= limit
                    line += f"{measured / 1e6:9.1f}{estimate / 1e6:9.1f}{off:+8.1%}"
                print(line, flush=True)
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
