"""Compare the training speed of dsv3 with that of Transformers' DeepseekV3ForCausalLM, in alternating rounds.

    tools/dev bench train [--shape tiny|nano] [--batch B] [--sequence T] [--steps N] [--rounds R] [--threads N] [--compile]

Both sides train the same shape in fp32 on the CPU, with AdamW, gradient clipping at 1.0, random tokens, no MTP, and no
validation inside the timed steps. Prints a table and lines such as `RATIO tokens_per_s dsv3/transformers_eager 1.23`.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = ROOT / "build/bin/dsv3-run"
WARM_UP = 2  # number of steps before the measured ones

# hidden, layers, dense layers, heads, q_lora, kv_lora, nope, rope, v, dense ffn, experts, top_k, shared, expert ffn, vocab
SHAPES = {
    "tiny": dict(hidden=256, layers=4, dense=1, heads=4, q_lora=0, kv_lora=64, nope=32, rope=32, v=64, dense_ffn=704,
                 experts=8, top_k=2, shared=1, expert_ffn=128, vocab=2048),
    "nano": dict(hidden=640, layers=12, dense=2, heads=10, q_lora=192, kv_lora=128, nope=32, rope=32, v=64,
                 dense_ffn=1728, experts=16, top_k=2, shared=1, expert_ffn=384, vocab=129280),
}


def experiment(s, a):
    return f"""\
dsv3: 1
name: bench
model:
  hidden: {s['hidden']}
  layers: {s['layers']}
  vocab: {s['vocab']}
  attention: {{plugin: mla, heads: {s['heads']}, q_lora_rank: {s['q_lora']}, kv_lora_rank: {s['kv_lora']},
              qk_nope_dim: {s['nope']}, qk_rope_dim: {s['rope']}, v_dim: {s['v']}}}
  position: {{plugin: rope}}
  feed_forward:
    - {{layers: 0-{s['dense'] - 1}, plugin: swiglu, hidden: {s['dense_ffn']}}}
    - {{layers: {s['dense']}-, plugin: moe, routed: {s['experts']}, top_k: {s['top_k']}, shared: {s['shared']}, hidden: {s['expert_ffn']}}}
  mtp: {{depth: 0}}
optimizer: {{plugin: adamw, lr: 3.0e-4}}
schedule: {{plugin: constant}}
strategy: {{plugin: single}}
data: {{plugin: synthetic}}
train: {{steps: {a.steps + WARM_UP}, batch: {a.batch}, sequence: {a.sequence}, precision: fp32, device: cpu, threads: {a.threads}, log_every: 1}}
validation: {{every: 0, batches: 1}}
"""


def run_dsv3(shape, a):
    """Return (tokens/s in each step, peak memory in bytes, seconds from launch to the start of step 1)."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "bench.yaml"
        file.write_text(experiment(SHAPES[shape], a))
        begin = time.time()
        subprocess.run([RUN, file, "--output", folder, "--run_name", "bench", "--quiet"], check=True, cwd=folder,
                       stderr=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (pathlib.Path(folder) / "bench/metrics.jsonl").read_text().splitlines()]
    speeds = [row["throughput/tokens_per_s"] for row in rows if "train/loss" in row]
    first = next(row for row in rows if row["step"] == 0)
    return speeds[WARM_UP:], max(row.get("memory/peak_bytes", 0) for row in rows), first["time"] - begin


def run_peer(shape, a, compiled):
    command = [sys.executable, __file__, "--peer", "compiled" if compiled else "eager", "--shape", shape,
               "--batch", str(a.batch), "--sequence", str(a.sequence), "--steps", str(a.steps), "--threads", str(a.threads)]
    out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return out["speeds"], out["peak"], out["start"]


def peer(a):
    """Benchmark the Transformers library. Runs in a separate process."""
    begin = time.time()
    import torch
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
    s = SHAPES[a.shape]
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=s["vocab"], hidden_size=s["hidden"], intermediate_size=s["dense_ffn"],
        moe_intermediate_size=s["expert_ffn"], num_hidden_layers=s["layers"], num_attention_heads=s["heads"],
        num_key_value_heads=s["heads"], n_shared_experts=s["shared"], n_routed_experts=s["experts"],
        routed_scaling_factor=1.0, kv_lora_rank=s["kv_lora"], q_lora_rank=s["q_lora"] or None,
        qk_rope_head_dim=s["rope"], v_head_dim=s["v"], qk_nope_head_dim=s["nope"], n_group=1, topk_group=1,
        num_experts_per_tok=s["top_k"], first_k_dense_replace=s["dense"], norm_topk_prob=True,
        max_position_embeddings=a.sequence, use_cache=False, attn_implementation="sdpa")
    model = DeepseekV3ForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    forward = torch.compile(model) if a.peer == "compiled" else model
    speeds, start = [], None
    for step in range(a.steps + WARM_UP):
        tokens = torch.randint(s["vocab"], (a.batch, a.sequence))
        tick = time.time()
        start = start or tick - begin
        forward(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        speeds.append(a.batch * a.sequence / (time.time() - tick))
    peak = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) * 1024
    print(json.dumps({"speeds": speeds[WARM_UP:], "peak": peak, "start": start}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true", help="also measure Transformers with torch.compile")
    parser.add_argument("--peer", choices=("eager", "compiled"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.peer:
        return peer(a)
    sides = {"dsv3": lambda: run_dsv3(a.shape, a), "transformers_eager": lambda: run_peer(a.shape, a, False)}
    if a.compile:
        sides["transformers_compile"] = lambda: run_peer(a.shape, a, True)
    results = {name: [] for name in sides}
    for _ in range(a.rounds):
        for name, measure in sides.items():
            results[name].append(measure())
    print(f"{a.shape}, {a.batch} x {a.sequence} tokens, fp32, {a.threads} threads, {a.rounds} rounds of {a.steps} steps")
    print(f"{'':22}{'tokens/s':>10}{'peak MB':>10}{'start s':>10}")
    speed, peak, start = {}, {}, {}
    for name, rounds in results.items():
        speed[name] = statistics.median(v for r in rounds for v in r[0])
        peak[name] = max(r[1] for r in rounds)
        start[name] = min(r[2] for r in rounds)
        print(f"{name:22}{speed[name]:10.0f}{peak[name] / 1e6:10.0f}{start[name]:10.2f}")
    for name in list(sides)[1:]:
        print(f"RATIO tokens_per_s dsv3/{name} {speed['dsv3'] / speed[name]:.2f}")
        print(f"RATIO peak_memory dsv3/{name} {peak['dsv3'] / peak[name]:.2f}")


if __name__ == "__main__":
    main()
