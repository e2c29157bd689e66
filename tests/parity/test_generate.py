"""`dsv3 generate` writes the same tokens as Transformers, for imported and exported models. Models are small and
random, with weights large enough that rounding does not change the most likely token.
"""

import json
import os
import pathlib
import random
import subprocess
import sys

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from support import BUILD, dsv3_run, make_tiny  # noqa: E402

TOKENS = 64
VOCAB = 64
KV_LORA, ROPE, NOPE, V_DIM, HEADS, LAYERS = 8, 4, 6, 8, 2, 3
DEEPSEEK = dict(
    vocab_size=VOCAB, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=LAYERS,
    num_attention_heads=HEADS, num_key_value_heads=HEADS, n_shared_experts=1, n_routed_experts=8, kv_lora_rank=KV_LORA,
    q_lora_rank=12, qk_rope_head_dim=ROPE, v_head_dim=V_DIM, qk_nope_head_dim=NOPE, n_group=4, topk_group=2,
    num_experts_per_tok=3, first_k_dense_replace=1, max_position_embeddings=256)
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0,
        "mscale_all_dim": 0.7, "beta_fast": 32, "beta_slow": 1}
MODELS = {
    "deepseek": (DeepseekV3ForCausalLM, lambda: DeepseekV3Config(**DEEPSEEK)),
    "deepseek_yarn": (DeepseekV3ForCausalLM, lambda: DeepseekV3Config(**{
        **DEEPSEEK, "q_lora_rank": None, "tie_word_embeddings": True, "rope_parameters": YARN})),
    "llama": (LlamaForCausalLM, lambda: LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256)),
}
PROMPTS = [random.Random(i).choices(range(VOCAB), k=k) for i, k in enumerate((1, 2, 3, 5, 7, 7, 11, 18, 2, 30))]


def dsv3(*arguments, check=0, **rest):
    done = subprocess.run([BUILD / "bin/dsv3", *map(str, arguments)], text=True, capture_output=True, timeout=300, **rest)
    assert done.returncode == check, f"exit {done.returncode}, not {check}:\n{done.stdout}\n{done.stderr}"
    return done


def prompt_file(folder, prompts=None):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(p) + "\n" for p in (prompts or PROMPTS)))
    return path


def generate(model, prompts, *options):
    """Return the new ids for each prompt, and the statistics."""
    done = dsv3("generate", model, "--ids", "--prompt-file", prompts, "--tokens", TOKENS, "--json", "--stats",
                "--precision", "fp32", *options)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(line["stop_reason"] == "length" and line["text"] is None for line in lines)
    stats = [json.loads(line)["stats"] for line in done.stderr.splitlines() if line.startswith('{"stats"')]
    return [line["ids"] for line in lines], stats[0]


def greedy(model, prompts, **options):
    """Return the continuations that Transformers generates."""
    texts = []
    for ids in prompts:
        given = torch.tensor([ids])
        out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
                             do_sample=False, pad_token_id=0, **options)
        texts.append(out[0, len(ids):].tolist())
    return texts


def spread(texts):
    """Return the mean number of distinct tokens per continuation, to detect continuations that repeat one token."""
    return sum(len(set(text)) for text in texts) / len(texts)


@pytest.fixture(scope="module", params=list(MODELS))
def random_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    make, config = MODELS[request.param]
    torch.manual_seed(3)
    model = make(config()).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.25) if weight.dim() > 1 else weight.uniform_(0.5, 1.5)
        for name, bias in model.named_buffers():
            if "e_score" in name:
                bias.normal_(-1, 0.3)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder / "hf")
    return request.param, folder, model


def test_a_hugging_face_folder_is_continued_as_transformers_does(random_model):
    name, folder, model = random_model
    prompts = prompt_file(folder)
    expected = greedy(model, PROMPTS)
    assert spread(expected) > 3
    actual, stats = generate(folder / "hf", prompts, "--temperature", 0)
    assert actual == expected
    assert generate(folder / "hf", prompts, "--temperature", 0, "--batch", 3)[0] == expected
    assert generate(folder / "hf", prompts, "--temperature", 0, "--no-cache")[0] == expected
    # The cache contains the prompt and all new tokens except the last, without padding.
    tokens = sum(len(p) + TOKENS - 1 for p in PROMPTS)
    values, layers = (KV_LORA + ROPE, LAYERS) if name != "llama" else (2 * 2 * 8, 2)
    assert stats["cache_tokens"] == tokens
    assert stats["cache_values_per_token_per_layer"] == values
    assert stats["cache_bytes"] == tokens * layers * values * 4
    assert stats["mha_values_per_token_per_layer"] == (HEADS * (NOPE + ROPE + V_DIM) if name != "llama" else 2 * 4 * 8)
    assert stats["new_tokens"] == TOKENS * len(PROMPTS)


def test_the_repetition_penalty_matches_transformers(random_model):
    _, folder, model = random_model
    expected = greedy(model, PROMPTS, repetition_penalty=1.4)
    assert expected != greedy(model, PROMPTS)
    actual, _ = generate(folder / "hf", prompt_file(folder), "--temperature", 0, "--repetition-penalty", 1.4)
    assert actual == expected


def test_an_imported_model_goes_back_to_transformers(random_model):
    name, folder, _ = random_model
    dsv3("import", folder / "hf", folder / "checkpoint")
    dsv3("export", folder / "checkpoint", folder / "exported")
    model = MODELS[name][0].from_pretrained(folder / "exported").float().eval()
    model.generation_config.eos_token_id = None
    actual, _ = generate(folder / "checkpoint", prompt_file(folder), "--temperature", 0)
    assert actual == greedy(model, PROMPTS)


@pytest.fixture(scope="module", params=[(1, "normed"), (2, "raw")], ids=["depth1", "depth2"])
def trained(request, tmp_path_factory):
    """A run with MTP modules and the byte tokenizer, trained briefly so that some drafts are correct."""
    depth, fed = request.param
    folder = tmp_path_factory.mktemp("trained")
    make_tiny(folder)
    dsv3_run("tiny.yaml", f"model.mtp.depth={depth}", f"model.mtp.input={fed}", "model.init.std=0.15", "train.steps=60",
             "--run_name", "run", cwd=folder)
    return depth, folder, folder / "runs/run"


def test_speculation_does_not_change_greedy_texts(trained):
    depth, folder, run = trained
    texts = ["the quick", "w", "old stone bridges near", "lazy dog while seven wiz", "mix po", "jumps over a", "brown",
             "potions near old", "fox", "a lazy"]
    prompts = prompt_file(folder, [list(t.encode()) for t in texts])
    dsv3("export", run, folder / "exported", "--no-mtp")
    model = DeepseekV3ForCausalLM.from_pretrained(folder / "exported").float().eval()
    model.generation_config.eos_token_id = None
    expected = greedy(model, [list(t.encode()) for t in texts])
    plain, without = generate(run, prompts, "--temperature", 0, "--no-speculate")
    assert plain == expected
    drafted, stats = generate(run, prompts, "--temperature", 0, "--speculate")
    assert drafted == expected
    assert generate(run, prompts, "--temperature", 0, "--speculate", "--batch", 1)[0] == expected
    assert without["speculation"] == [] and len(stats["speculation"]) == depth
    assert stats["speculation"][0]["accepted"] > 0
    assert without["forwards"] == TOKENS and without["mtp_cache_bytes"] == 0 < stats["mtp_cache_bytes"]
    assert stats["cache_bytes"] == stats["cache_tokens"] * 3 * (16 + 8) * 4


def test_texts_on_the_terminal(trained):
    _, folder, run = trained
    options = ["generate", run, "--tokens", 40]
    one = dsv3(*options, "--prompt", "the quick", "--json")
    line = json.loads(one.stdout)
    assert line["prompt"] == "the quick" and line["stop_reason"] in ("length", "eos")
    text = bytes(line["ids"]).decode(errors="replace")
    assert line["text"] == text
    assert dsv3(*options, "--prompt", "the quick").stdout == "the quick" + text + "\n"
    assert dsv3(*options, input="the quick\n").stdout == "the quick" + text + "\n"
    # With several prompts, each continuation is the same as with one prompt, and is printed separately.
    several = dsv3(*options, "--prompt", "the quick", "--prompt", "a lazy").stdout
    first, second = several.split("--- 2 of 2 ---\n")
    assert first == "--- 1 of 2 ---\nthe quick" + text + "\n"
    assert second == dsv3(*options, "--prompt", "a lazy").stdout
    (folder / "lines.txt").write_text("the quick\n\na lazy\n")
    assert dsv3(*options, "--prompt-file", folder / "lines.txt").stdout == several
    assert dsv3(*options, "--prompt", "the quick", "--seed", 4).stdout != "the quick" + text + "\n"
    assert dsv3("generate", run, "--prompt", "the quick", "--precision", "bf16", "--stats", "--json",
                "--tokens", 3).stderr.find('"cache_element_bytes":2') > 0


def test_stop_texts_and_statistics(trained):
    depth, _, run = trained
    options = ["generate", run, "--temperature", 0, "--tokens", 60, "--prompt", "the quick"]
    text = json.loads(dsv3(*options, "--json").stdout)["text"]
    stop = text[7:10]
    line = json.loads(dsv3(*options, "--json", "--stop", stop, "--stop", "\u20ac").stdout)
    assert line["text"] == text[:text.index(stop)] and line["stop_reason"] == "stop"
    assert dsv3(*options, "--stop", stop).stdout == "the quick" + text[:text.index(stop)] + "\n"
    line = json.loads(dsv3(*options, "--json", "--stop-id", ord(text[5])).stdout)
    assert line["text"] == text[:text.index(text[5])] and line["stop_reason"] == "stop"
    stats = dsv3(*options, "--stats").stderr
    assert "24 values per token and layer; multi-head attention with the same heads: 64, 2.7 times as many" in stats
    assert " tokens x 3 layers x 24 values x 4 bytes = " in stats
    assert stats.count("drafts accepted") == depth


def error(*arguments, **rest):
    done = subprocess.run([BUILD / "bin/dsv3", "generate", *map(str, arguments)], text=True, capture_output=True,
                          timeout=300, **rest)
    assert done.returncode != 0 and done.stdout == "", done
    return done.stderr


def test_errors(random_model, trained, tmp_path):
    name, folder, _ = random_model
    if name != "deepseek":
        return
    _, _, run = trained
    model = folder / "hf"
    assert "has no tokenizer; pass --tokenizer FILE" in error(model, "--prompt", "a")
    assert "which is outside the model's vocabulary, 0 to 63" in error(model, "--ids", "--prompt", "[3, 64]")
    assert "the prompt is empty" in error(model, "--ids", "--prompt", "[]")
    assert "the prompt is empty" in error(run, "--prompt", "")
    assert "the prompt is empty" in error(run, input="")
    assert "invalid token id -3" in error(model, "--ids", "--prompt", "[1, -3]")
    assert "list of ids such as [1, 2, 3]" in error(model, "--ids", "--prompt", "3")
    assert "line 1" in error(model, "--ids", "--prompt", "[3") or ":1:" in error(model, "--ids", "--prompt", "[3")
    assert "nowhere" in error(tmp_path / "nowhere", "--prompt", "a")
    assert "--prompt-file: cannot read" in error(run, "--prompt-file", tmp_path / "none.txt")
    assert "use --stop-id" in error(model, "--ids", "--prompt", "[1]", "--stop", "a")
    assert "has no MTP modules, which --speculate requires" in error(model, "--ids", "--prompt", "[1]", "--speculate")
    assert "remove --no-cache" in error(run, "--prompt", "a", "--speculate", "--no-cache")
    assert "top_p must be" in error(run, "--prompt", "a", "--top-p", 0)
    assert "the text may reach 101 tokens, but the model was trained with sequence length 48" in dsv3(
        "generate", run, "--prompt", "a", "--tokens", 100).stderr
