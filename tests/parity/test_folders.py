"""Importing and exporting a Hugging Face folder preserves every bit, and Transformers computes the same results."""

import json
import shutil
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

import oracle

sys.path.insert(0, str(oracle.SOURCE / "tests/e2e"))

from support import TINY, make_tiny  # noqa: E402


def tensors_of(folder):
    """Return the tensors in all files: name -> (dtype, shape, bytes)."""
    found = {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            found[name] = (tensor.dtype, tuple(tensor.shape), tensor.view(torch.uint8).numpy().tobytes())
    return found


def through_dsv3(folder, scratch, *words):
    """Import the folder with dsv3 and export it again."""
    oracle.program("dsv3", "import", folder, scratch / "checkpoint")
    oracle.program("dsv3", "export", scratch / "checkpoint", scratch / "out", *words)
    return scratch / "out"


def cast(folder, dtype_of):
    """Cast the tensors in a folder to the dtypes that `dtype_of(name)` returns."""
    for file in folder.glob("*.safetensors"):
        save_file({name: tensor.to(dtype_of(name)).contiguous() for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def mixed(name):
    """Return different dtypes for different tensors. The router bias is fp32, as in the released DeepSeek-V3."""
    if name.endswith("bias") or name.endswith("norm.weight"):
        return torch.float32
    return torch.float16 if "experts" in name else torch.bfloat16


DTYPES = {"fp32": lambda name: torch.float32, "mixed": mixed,
          "bf16": lambda name: torch.float32 if name.endswith("bias") else torch.bfloat16}


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("name, shard", [("v3", None), ("many_experts", "20KB"), ("llama_grouped", "10KB")])
def test_import_and_export_keep_every_bit(name, shard, dtypes, tmp_path):
    folder = oracle.store(oracle.spread(oracle.make(name), name), tmp_path / "in", **({"max_shard_size": shard} if shard else {}))
    cast(folder, DTYPES[dtypes])
    assert (len(list(folder.glob("*.safetensors"))) > 1) == bool(shard)
    out = through_dsv3(folder, tmp_path, *(["--shard-size", "15K"] if shard else []))
    assert (len(list(out.glob("*.safetensors"))) > 1) == bool(shard)
    assert tensors_of(out) == tensors_of(folder)
    if shard:
        index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
        for file in out.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                assert set(opened.keys()) == {key for key, shard in index.items() if shard == file.name}
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    given = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), given.state_dict().values()))


def trained(folder, *words):
    """Train a model with every component for three steps and return the run's folder."""
    make_tiny(folder)
    oracle.program("dsv3-run", "tiny.yaml", "train.steps=3", "schedule.warmup=0", "validation.every=0", *words, "--run_name", "run", cwd=folder)
    return folder / "runs/run"


def same_logits(run, hf, scratch, **options):
    """Return the largest relative difference between dsv3's logits for the run and Transformers' for the export."""
    model, info = AutoModelForCausalLM.from_pretrained(hf, output_loading_info=True, **options)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    tokens = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(2))
    (scratch / "tokens.json").write_text(json.dumps(tokens.tolist()))
    oracle.program("dsv3", "logits", run, "--tokens", scratch / "tokens.json", "--output", scratch / "logits")
    with torch.no_grad():
        return oracle.largest(load_file(scratch / "logits")["logits"], model(tokens).logits), info


@pytest.mark.parametrize("words, flags", [([], []), ([], ["--no-mtp"]), (["model.tied_head=true", "model.mtp.depth=2"], []),
                                          (["model.mtp.depth=0", "model.position.layout=half"], [])])
def test_trained_models_are_transformers_models(words, flags, worst, tmp_path):
    run = trained(tmp_path, *words)
    oracle.program("dsv3", "export", run, tmp_path / "hf", *flags)
    difference, info = same_logits(run, tmp_path / "hf", tmp_path)
    assert worst("logits of exports", difference, str(words)) < 1e-4
    depth = 0 if flags or "model.mtp.depth=0" in words else 2 if words else 1
    layers = {key.split(".")[2] for key in info["unexpected_keys"]}
    assert layers == {str(3 + k) for k in range(depth)}
    stored = tensors_of(tmp_path / "hf")
    assert ("lm_head.weight" in stored) == ("model.tied_head=true" not in words)
    for k in range(depth):
        assert stored[f"model.layers.{3 + k}.embed_tokens.weight"] == stored["model.embed_tokens.weight"]
    # Importing the export and exporting it again does not change the tensors.
    (tmp_path / "again").mkdir()
    assert tensors_of(through_dsv3(tmp_path / "hf", tmp_path / "again")) == stored


@pytest.mark.parametrize("layout", ["interleaved", "half"])
@pytest.mark.parametrize("position", ["rope, theta: 700", "yarn, factor: 4, original_length: 16, mscale: 0, mscale_all_dim: 0"])
def test_mha_is_llama(position, layout, worst, tmp_path):
    """Llama pairs features from the two halves of a head, so exporting interleaved pairs permutes the weights."""
    run = trained(tmp_path, "model.attention={plugin: mha, heads: 4, kv_heads: 2, head_dim: 12}",
                  f"model.position={{plugin: {position}, layout: {layout}}}", "model.feed_forward={plugin: swiglu, hidden: 48}",
                  "model.mtp.depth=0", "model.norm.eps=1.0e-3")
    done = oracle.program("dsv3", "export", run, tmp_path / "hf")
    assert "llama" in done.stdout
    assert json.loads((tmp_path / "hf/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    difference, info = same_logits(run, tmp_path / "hf", tmp_path)
    assert not info["unexpected_keys"]
    assert worst("logits of exports", difference, f"{position}, {layout}") < 1e-4
    # dsv3 computes the same logits from the folder as from the run.
    oracle.program("dsv3", "logits", tmp_path / "hf", "--tokens", tmp_path / "tokens.json", "--output", tmp_path / "again")
    assert oracle.largest(load_file(tmp_path / "again")["logits"], load_file(tmp_path / "logits")["logits"]) < 1e-5


def test_bf16_export(tmp_path):
    run = trained(tmp_path)
    oracle.program("dsv3", "export", run, tmp_path / "fp32")
    oracle.program("dsv3", "export", run, tmp_path / "bf16", "--dtype", "bf16")
    assert json.loads((tmp_path / "bf16/config.json").read_text())["dtype"] == "bfloat16"
    for name, tensor in load_file(tmp_path / "fp32/model.safetensors").items():
        found = load_file(tmp_path / "bf16/model.safetensors")[name]
        assert torch.equal(found, tensor if name.endswith("e_score_correction_bias") else tensor.bfloat16())


# ---- tokenizers

TEXTS = ["The quick brown fox.", "naïve café — 漢字 🙂", "  two  spaces\n\tand a tab", "<|endoftext|>inside<|endoftext|>", ""]


def small_bpe(path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog while wizards mix potions"] * 50, trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"],
        show_progress=False))
    tokenizer.save(str(path))
    return tokenizer


@pytest.mark.parametrize("plugin", ["bytes", "bpe"])
def test_exported_tokenizers_load(plugin, tmp_path):
    bpe_tokenizer = small_bpe(tmp_path / "tokenizer.json") if plugin == "bpe" else None
    words = [f"data.tokenizer={{plugin: bpe, file: {tmp_path}/tokenizer.json}}"] if bpe_tokenizer else []
    run = trained(tmp_path, *words)
    oracle.program("dsv3", "export", run, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    eos = bpe_tokenizer.token_to_id("<|endoftext|>") if bpe_tokenizer else 256
    assert tokenizer.eos_token_id == eos == json.loads((tmp_path / "hf/config.json").read_text())["eos_token_id"]
    for text in TEXTS:
        if bpe_tokenizer:
            ids = bpe_tokenizer.encode(text).ids
        else:  # one id per byte, with `eos` in place of each "<|endoftext|>"
            ids = sum(([*part.encode(), eos] for part in text.split("<|endoftext|>")), [])[:-1]
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text
    # Training can continue from the folder alone, with the folder's tokenizer or the run's.
    shutil.move(tmp_path / "hf", tmp_path / "elsewhere")
    oracle.program("dsv3", "import", tmp_path / "elsewhere", tmp_path / "checkpoint")
    own = json.loads((tmp_path / "checkpoint/tokenizer.json").read_text())["model"]["vocab"]
    assert len(own) == len(tokenizer.get_vocab()) - (1 if bpe_tokenizer and "<|endoftext|>" not in own else 0)
    short = ["train.steps=1", "validation.share=0.1", "train.sequence=48", "train.batch=2", "data.path=text.txt"]
    oracle.program("dsv3-run", "checkpoint/experiment.yaml", *short, "--from", "checkpoint", "--run_name", "own", cwd=tmp_path)
    for start in ("checkpoint", "elsewhere"):
        oracle.program("dsv3-run", "tiny.yaml", *words, "train.steps=1", "schedule.warmup=0", "--from", start, "--run_name", start, cwd=tmp_path)


def test_another_tokenizer_is_rejected(tmp_path):
    run = trained(tmp_path)
    oracle.program("dsv3", "export", run, tmp_path / "hf")
    small_bpe(tmp_path / "hf/tokenizer.json")
    done = oracle.program("dsv3", "import", tmp_path / "hf", tmp_path / "checkpoint", check=5)
    assert "not the tokenizer that the model was exported with" in done.stderr
