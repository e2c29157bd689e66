"""The validation loss of a run equals the loss that Transformers computes from the exported model on the same rows."""

import json
import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

import oracle
import packing

LENGTH, BATCH, BATCHES, SHARE = 64, 4, 3, 0.2

EXPERIMENT = """\
dsv3: 1
name: quick
model:
  hidden: 64
  layers: 3
  vocab: auto
  init: {std: 0.02}
  attention: {plugin: mla, heads: 4, q_lora_rank: 0, kv_lora_rank: 16, qk_nope_dim: 8, qk_rope_dim: 8, v_dim: 16}
  position: {plugin: rope, theta: 10000}
  feed_forward:
    - {layers: 0, plugin: swiglu, hidden: 128}
    - {layers: 1-2, plugin: moe, routed: 8, top_k: 2, shared: 1, hidden: 32}
  mtp: {depth: 1, weight: 0.3}
optimizer: [{plugin: adamw, lr: 5.0e-3}]
schedule: {plugin: cosine, warmup: 10}
strategy: {plugin: single}
data: {plugin: text, path: text.txt, tokenizer: {plugin: bpe, file: tokenizer.json}}
"""
RUN = f"""\
train: {{steps: 80, batch: {BATCH}, sequence: {LENGTH}, precision: fp32, seed: 1, log_every: 10, threads: 1}}
validation: {{every: 40, batches: {BATCHES}, share: {SHARE}}}
checkpoint: {{every: 0, keep_best: 1}}
"""
LLAMA = ["model.attention={plugin: mha, heads: 4, kv_heads: 2}", "model.feed_forward={plugin: swiglu, hidden: 96}",
         "model.mtp.depth=0", "optimizer=muon"]


def synthetic_text():
    """Sentences from a small grammar; each paragraph is a document."""
    rng = random.Random(11)
    nouns = "river stone king daughter servant field bread city mountain sheep vineyard house".split()
    verbs = "saw took built kept gave left found blessed counted followed".split()
    return ["\n".join(f"And the {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)} of the {rng.choice(nouns)}, "
                      f"{rng.randrange(1, 200)} in number." for _ in range(rng.randrange(1, 9))) for _ in range(150)]


def train_tokenizer(path, documents):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"],
        show_progress=False))
    tokenizer.save(str(path))
    return tokenizer


def held_out_rows(documents, tokenizer):
    eos = tokenizer.token_to_id("<|endoftext|>")
    held_out = [d for d in documents if packing.held_out(d.encode(), SHARE)]
    assert 10 < len(held_out) < len(documents) / 2
    tokens, ids = packing.validation_rows([tokenizer.encode(d).ids + [eos] for d in held_out], LENGTH, BATCH)
    return oracle.Rows(tokens[:BATCHES * BATCH], ids[:BATCHES * BATCH])


@pytest.mark.parametrize("words", [[], LLAMA], ids=["deepseek_v3", "llama"])
def test_validation_loss(words, worst, tmp_path):
    documents = synthetic_text()
    (tmp_path / "text.txt").write_text("\n\n".join(documents) + "\n")
    (tmp_path / "quick.yaml").write_text(EXPERIMENT + RUN)
    tokenizer = train_tokenizer(tmp_path / "tokenizer.json", documents)
    oracle.program("dsv3-run", "quick.yaml", *words, "--run_name", "run", "--quiet", cwd=tmp_path)
    oracle.program("dsv3", "export", "runs/run", "hf", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    reported = [line["val/loss"] for line in lines if "val/loss" in line]
    assert len(reported) == 3 and reported[-1] < reported[0] - 1

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    rows = held_out_rows(documents, tokenizer)
    targets = rows.targets(1)
    with torch.no_grad():
        loss = oracle.cross_entropy_sum(model.lm_head(oracle.decoder(model, rows)[1]), targets) / (targets >= 0).sum()
    assert worst("validation losses", abs(float(loss) - reported[-1]), str(words)) < 1e-5
