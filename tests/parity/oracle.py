"""Small Transformers models that serve as oracles. They cover every option, are stored as folders, and provide losses
and expert choices."""

import json
import os
import pathlib
import random
import subprocess

import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

SOURCE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DSV3_BUILD_DIR", SOURCE / "build"))
VOCAB = 64

torch.set_num_threads(1)

DEEPSEEK = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=3,
    num_attention_heads=2, num_key_value_heads=2, n_shared_experts=1, n_routed_experts=8, kv_lora_rank=8, q_lora_rank=12,
    qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=6, n_group=4, topk_group=2, num_experts_per_tok=3,
    first_k_dense_replace=1, max_position_embeddings=64, routed_scaling_factor=2.5, norm_topk_prob=True,
    num_nextn_predict_layers=0)
LLAMA = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=64)


def yarn(factor, length, theta=10000.0, **more):
    return {"rope_parameters": {"rope_type": "yarn", "rope_theta": theta, "factor": factor, "beta_fast": 32, "beta_slow": 1,
                                "original_max_position_embeddings": length, **more}}


def theta(value):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": value}}


def drawn(seed):
    """Return a random combination of options."""
    rng = random.Random(seed)
    groups = rng.choice([1, 2, 4])
    per_group = rng.randrange(2, 5)
    open_groups = rng.randrange(1, groups + 1)
    heads = rng.randrange(1, 5)
    layers = rng.randrange(1, 5)
    shape = dict(
        vocab_size=rng.choice([VOCAB, 97]), hidden_size=rng.choice([24, 40]), num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, q_lora_rank=rng.choice([None, 10]),
        kv_lora_rank=rng.randrange(4, 12), qk_rope_head_dim=rng.choice([2, 4, 8]), qk_nope_head_dim=rng.randrange(3, 9),
        v_head_dim=rng.randrange(3, 12), n_group=groups, n_routed_experts=groups * per_group, topk_group=open_groups,
        num_experts_per_tok=rng.randrange(2, open_groups * per_group + 1), n_shared_experts=rng.choice([1, 2]),
        first_k_dense_replace=rng.randrange(0, layers + 1), routed_scaling_factor=rng.choice([1.0, 1.7, 2.5]),
        norm_topk_prob=rng.random() < 0.5, rope_interleave=rng.random() < 0.5, tie_word_embeddings=rng.random() < 0.3,
        rms_norm_eps=rng.choice([1e-6, 1e-5, 1e-3]))
    if rng.random() < 0.5:
        mscales = rng.choice([{}, {"mscale": 1.0, "mscale_all_dim": 1.0}, {"mscale": 0.7, "mscale_all_dim": 1.3}])
        return shape | yarn(rng.choice([2.0, 8.0]), rng.choice([8, 32]), rng.choice([500.0, 10000.0]), **mscales)
    return shape | theta(rng.choice([300.0, 10000.0, 1e6]))


# name -> (differences from DEEPSEEK, (mean, standard deviation) of the router biases)
DEEPSEEK_MODELS = {
    "v3": ({}, (0, 0.1)),
    "plain_query_half_tied": (dict(q_lora_rank=None, rope_interleave=False, tie_word_embeddings=True), (0, 0.1)),
    "yarn": (yarn(4.0, 16, 5000.0, mscale=1.0, mscale_all_dim=0.7), (0, 0.1)),
    "yarn_equal_half": (dict(rope_interleave=False, qk_rope_head_dim=8) | yarn(40.0, 8, mscale=1.0, mscale_all_dim=1.0),
                        (0, 0.1)),
    "yarn_without_mscale": (dict(q_lora_rank=None) | yarn(8.0, 16), (0, 0.1)),
    "yarn_softmax_only": (dict(qk_rope_head_dim=8) | yarn(4.0, 8, mscale_all_dim=0.5), (0, 0.1)),
    "all_experts": (dict(first_k_dense_replace=0, n_shared_experts=2, n_group=1, topk_group=1, norm_topk_prob=False,
                         routed_scaling_factor=1.0), (0, 0.1)),
    "all_dense": (dict(first_k_dense_replace=3), (0, 0)),
    "negative_bias": (dict(topk_group=1, num_experts_per_tok=2), (-3, 0.2)),
    "wide_values": (dict(v_head_dim=13, qk_nope_head_dim=5, num_attention_heads=3, num_key_value_heads=3), (-1, 0.3)),
    "large_eps": (dict(rms_norm_eps=1e-2) | theta(500.0), (0, 0.1)),
    "one_expert": (dict(num_experts_per_tok=1, norm_topk_prob=False, n_group=2, topk_group=1), (0, 0.1)),
    "many_experts": (dict(n_routed_experts=32, n_group=8, topk_group=4, num_experts_per_tok=6, n_shared_experts=2,
                          tie_word_embeddings=True), (-0.5, 0.2)),
} | {f"drawn_{seed}": (drawn(seed), (-seed / 2, 0.2)) for seed in range(4)}

LLAMA_MODELS = {
    "llama": {},
    "llama_grouped": dict(num_key_value_heads=2, head_dim=6),
    "llama_tied": dict(tie_word_embeddings=True, num_key_value_heads=1, rms_norm_eps=1e-3) | theta(500.0),
    "llama_yarn": dict(num_key_value_heads=2, head_dim=16) | yarn(4.0, 16, 5000.0),
}
MODELS = [*DEEPSEEK_MODELS, *LLAMA_MODELS]


def format_of(name):
    return "deepseek_v3" if name in DEEPSEEK_MODELS else "llama"


def make(name, more_layers=0, **changes):
    """Build the model with Transformers' initialisation. Add `more_layers` layers of the same kind as the last."""
    torch.manual_seed(MODELS.index(name))
    if name in LLAMA_MODELS:
        config, kind = LlamaConfig(**(LLAMA | LLAMA_MODELS[name] | changes)), LlamaForCausalLM
    else:
        options = DEEPSEEK | DEEPSEEK_MODELS[name][0] | changes
        if options["first_k_dense_replace"] == options["num_hidden_layers"]:
            options["first_k_dense_replace"] += more_layers
        options["num_hidden_layers"] += more_layers
        config, kind = DeepseekV3Config(**options), DeepseekV3ForCausalLM
    config._experts_implementation = "eager"
    return kind._from_config(config, attn_implementation="eager").float().eval()


def spread(model, name):
    """Replace initial weights, norms and biases with larger random values, so that every part affects the result."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
        mean, deviation = DEEPSEEK_MODELS.get(name, ({}, (0, 0)))[1]
        for gate in gates(model):
            gate.e_score_correction_bias.normal_(mean, deviation)
    return model


def gates(model):
    return [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]


def store(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


# ---- names

def stored(name, tensor):
    """Yield (stored name, tensor) for each part of a Transformers parameter: one tensor per expert, with gate and up
    separate."""
    if name.endswith("experts.gate_up_proj"):
        base = name.removesuffix("gate_up_proj")
        for expert, both in enumerate(tensor):
            for part, values in zip(("gate", "up"), both.chunk(2)):
                yield f"{base}{expert}.{part}_proj.weight", values
    elif name.endswith("experts.down_proj"):
        base = name.removesuffix("down_proj")
        for expert, values in enumerate(tensor):
            yield f"{base}{expert}.down_proj.weight", values
    else:
        yield name, tensor


def stored_all(named):
    return {key: value for name, tensor in named for key, value in stored(name, tensor)}


def gradients(model):
    return stored_all((name, torch.zeros_like(p) if p.grad is None else p.grad) for name, p in model.named_parameters())


# ---- rows of packed documents, computed element by element

class Rows:
    """Tokens and document ids [B, T + 1]. Consecutive identical ids are one document; -1 is padding."""

    def __init__(self, tokens, ids):
        self.tokens, self.ids = tokens, ids
        rows, length = tokens.shape[0], tokens.shape[1] - 1
        self.inputs = tokens[:, :-1]
        self.run, self.positions = torch.zeros_like(tokens), torch.zeros(rows, length, dtype=torch.long)
        for b in range(rows):
            for t in range(1, length + 1):
                same = ids[b, t] == ids[b, t - 1]
                self.run[b, t] = self.run[b, t - 1] + (not same)
                if t < length:
                    self.positions[b, t] = self.positions[b, t - 1] + 1 if same else 0
        run = self.run[:, :-1]
        allowed = (run[:, :, None] == run[:, None, :]).tril()
        self.mask = torch.zeros(rows, 1, length, length).masked_fill_(~allowed[:, None], float("-inf"))

    def targets(self, ahead):
        """Return the token `ahead` positions after each input, or -100 if that position is not in the same document."""
        rows, length = self.inputs.shape
        found = torch.full((rows, length), -100)
        for b in range(rows):
            for t in range(length):
                target = t + ahead
                if target <= length and self.run[b, target] == self.run[b, t] and self.ids[b, target] >= 0:
                    found[b, t] = self.tokens[b, target]
        return found

    def save(self, path):
        save_file({"tokens": self.tokens, "document_ids": self.ids}, path)
        return path


def make_rows(seed, rows, length, vocab=VOCAB, padding=0):
    """Random rows with documents of random length. The last `padding` positions of the last row are padding."""
    rng = random.Random(seed)
    tokens = torch.tensor([[rng.randrange(vocab) for _ in range(length + 1)] for _ in range(rows)])
    ids, document = torch.zeros_like(tokens), 0
    for b in range(rows):
        for t in range(length + 1):
            document += rng.random() < 0.07
            ids[b, t] = document
    if padding:
        ids[-1, -padding:], tokens[-1, -padding:] = -1, 0
    return Rows(tokens, ids)


# ---- values recorded during a forward pass

class Routers:
    """Collects every router's choices during a forward pass."""

    def __init__(self, routers):
        self.logits, self.choices = [], []
        self.handles = [router.register_forward_hook(self.take) for router in routers]

    def take(self, router, inputs, output):
        self.logits.append(output[0])
        self.choices.append(output[2])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()

    def chosen(self):
        """int64 [tokens, E] per layer: 1 where an expert was chosen."""
        return [torch.zeros(c.shape[0], l.shape[1], dtype=torch.long).scatter_(1, c, 1)
                for c, l in zip(self.choices, self.logits)]

    def balance_loss(self, rows):
        """Return the report's sum_i f_i P_i (eq. 17 to 20), summed over layers and rows."""
        total = 0
        for chosen, logits in zip(self.chosen(), self.logits):
            experts, slots = chosen.shape[1], int(chosen[0].sum())
            scores = logits.sigmoid()
            share = (scores / scores.sum(-1, keepdim=True)).view(rows, -1, experts)
            often = chosen.view(rows, -1, experts).float().mean(1) * experts / slots
            total = total + (often * share.mean(1)).sum()
        return total


def bias_change(counts, rate=1e-3):
    counts = counts.double()
    return (rate * torch.sign(counts.mean() - counts)).float()


def decoder(model, rows):
    """Return the hidden states [B, T, D] after the last layer, before and after the final norm."""
    raw = []
    handle = model.model.norm.register_forward_hook(lambda module, inputs, output: raw.append(inputs[0]))
    normed = model.model(input_ids=rows.inputs, attention_mask=rows.mask, position_ids=rows.positions,
                         use_cache=False).last_hidden_state
    handle.remove()
    return raw[0], normed


def cross_entropy_sum(logits, targets):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100,
                                             reduction="sum")


# ---- dsv3's side

class Driver:
    """A running model_driver."""

    def __init__(self, folder):
        self.folder, self.jobs = folder, 0
        self.process = subprocess.Popen([BUILD / "bin/model_driver"], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def run(self, model, format_name, rows, settings=(), micro_batch=1000):
        self.jobs += 1
        batch, out = self.folder / f"batch-{self.jobs}", self.folder / f"out-{self.jobs}"
        rows.save(batch)
        job = {"model": str(model), "format": format_name, "settings": list(settings), "batch": str(batch),
               "micro_batch": micro_batch, "out": str(out)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer == "done\n", f"model_driver exited with {self.process.wait()}; see its stderr above"
        return load_file(out)

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0


def program(name, *words, cwd=None, check=0):
    done = subprocess.run([BUILD / "bin" / name, *map(str, words)], cwd=cwd, text=True, capture_output=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    if check is not None:
        assert done.returncode == check, f"{name} {words}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def relative(found, expected):
    """Return the norm of the difference divided by the norm of `expected`, or 0 if there is no difference."""
    difference, size = (found.double() - expected.double()).norm(), expected.double().norm()
    assert torch.isfinite(difference)
    return 0.0 if difference == 0 else float(difference / max(size, 1e-30))


def largest(found, expected):
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
