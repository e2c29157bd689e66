"""Damaged folders and models that dsv3 cannot express are rejected with an error that states the cause, and nothing is
written."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

import oracle
import test_mtp

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Stored models by name, each created once and never changed."""
    root = tmp_path_factory.mktemp("good")
    oracle.store(oracle.make("v3"), root / "v3")
    oracle.store(oracle.make("llama"), root / "llama")
    oracle.store(oracle.make("v3"), root / "sharded", max_shard_size="20KB")
    (root / "mtp").mkdir()
    test_mtp.Oracle("v3", 1).store(root / "mtp")
    return root


@pytest.fixture
def copy(good, tmp_path):
    import shutil
    return lambda name: shutil.copytree(good / name, tmp_path / "hf")


def rejected(folder, code, *pieces):
    """Assert that `dsv3 import` exits with `code`, prints one error that contains all `pieces`, and leaves no files
    next to the folder."""
    before = sorted(p.name for p in folder.parent.iterdir())
    done = oracle.program("dsv3", "import", folder, folder.parent / "checkpoint", check=code)
    assert sorted(p.name for p in folder.parent.iterdir()) == before
    assert done.stderr.count("error:") == 1
    for piece in pieces:
        assert piece in done.stderr, done.stderr
    return done.stderr


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "REMOVE"}))


def change_tensors(folder, change, file="model.safetensors"):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def change_header(folder, change):
    """Change the header of model.safetensors but not its data."""
    content = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + size])
    change(header)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size:])


# ---- files

def test_truncated_file(copy):
    folder = copy("v3")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    rejected(folder, 5, "model.safetensors", "truncated")
    (folder / "model.safetensors").write_bytes(content[:40])
    rejected(folder, 5, "model.safetensors", "ends inside its header")
    (folder / "model.safetensors").write_bytes(b"")
    rejected(folder, 5, "model.safetensors")


def test_overlapping_offsets(copy):
    folder = copy("v3")

    def overlap(header):
        first, second = (name for name in header if name.endswith("norm.weight") and "layers.0" in name and "input" not in name)
        header[second]["data_offsets"] = [begin - 4 for begin in header[second]["data_offsets"]]
    change_header(folder, lambda header: header[NORM].update(data_offsets=[o + 4 for o in header[NORM]["data_offsets"]]))
    rejected(folder, 5, "model.safetensors", "starts at byte")


def test_header_that_is_not_json(copy):
    folder = copy("v3")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[9:20] = b"not json at"
    (folder / "model.safetensors").write_bytes(content)
    rejected(folder, 5, "model.safetensors")


def test_missing_shard(copy):
    folder = copy("sharded")
    shard = sorted(folder.glob("model-0*.safetensors"))[1]
    shard.unlink()
    rejected(folder, 5, shard.name, "is missing", "model.safetensors.index.json")


def test_index_names_what_the_shard_lacks(copy):
    folder = copy("sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    moved = next(name for name, file in index["weight_map"].items() if file == files[0])
    index["weight_map"][moved] = files[1]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    rejected(folder, 5, moved, "does not match model.safetensors.index.json")


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/etc/passwd", "", 7])
def test_index_names_files_elsewhere(copy, file):
    folder = copy("sharded")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"][NORM] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    rejected(folder, 5, NORM, "must be a plain file name")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}'])
def test_broken_index(copy, text):
    folder = copy("sharded")
    (folder / "model.safetensors.index.json").write_text(text)
    rejected(folder, 5, "model.safetensors.index.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_broken_config(copy, text):
    folder = copy("v3")
    (folder / "config.json").write_text(text)
    rejected(folder, 5, "config.json")


def test_weights_of_pytorch_only(copy):
    folder = copy("v3")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    rejected(folder, 5, "neither model.safetensors nor", "pytorch_model.bin")


# ---- tensors

@pytest.mark.parametrize("dtype, word", [(torch.int64, "I64"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.float64, "F64")])
def test_dtype(copy, dtype, word):
    folder = copy("v3")
    change_tensors(folder, lambda tensors: tensors.update({NORM: tensors[NORM].to(dtype)}))
    rejected(folder, 5, NORM, word)


def test_shape(copy):
    folder = copy("v3")
    change_tensors(folder, lambda tensors: tensors.update({NORM: torch.ones(31)}))
    rejected(folder, 5, NORM, "31", "32")


def test_transposed(copy):
    folder, name = copy("v3"), "model.layers.0.mlp.down_proj.weight"
    change_tensors(folder, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    rejected(folder, 5, name, "[48, 32]", "[32, 48]")


def test_missing_tensor(copy):
    folder = copy("v3")
    change_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.experts.5.up_proj.weight"))
    rejected(folder, 5, "lacks", "model.layers.1.mlp.experts.5.up_proj.weight")


def test_unexpected_tensor(copy):
    folder = copy("v3")
    change_tensors(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(20)}))
    rejected(folder, 5, "not part of config.json", "model.layers.0.self_attn.q_proj.bias")


@pytest.mark.parametrize("copied", ["embed_tokens.weight", "shared_head.head.weight"])
def test_mtp_copies_that_differ(copy, copied):
    folder, name = copy("mtp"), f"model.layers.3.{copied}"
    accepted = oracle.program("dsv3", "import", folder, folder.parent / "fine")
    assert accepted.returncode == 0
    change_tensors(folder, lambda tensors: tensors[name][0].add_(1))
    rejected(folder, 5, name, "differ")


def test_half_of_an_mtp_module(copy):
    folder = copy("mtp")
    change_tensors(folder, lambda tensors: tensors.pop("model.layers.3.enorm.weight"))
    rejected(folder, 5, "lacks", "model.layers.3.enorm.weight")


def test_tied_head_that_differs(copy):
    folder = copy("v3")
    change_config(folder, tie_word_embeddings=True)
    rejected(folder, 5, "lm_head.weight", "differ")


# ---- config.json

def test_unknown_architecture(copy):
    folder = copy("v3")
    change_config(folder, model_type="gpt_neox")
    rejected(folder, 2, "gpt_neox", "deepseek_v3", "llama")


def test_no_architecture(copy):
    folder = copy("v3")
    change_config(folder, model_type="REMOVE")
    rejected(folder, 2, "model_type")


UNSUPPORTED = [
    ("v3", {"sliding_window": 4096}, "sliding_window"),
    ("v3", {"attention_bias": True}, "attention_bias"),
    ("v3", {"attention_dropout": 0.1}, "attention_dropout"),
    ("v3", {"hidden_act": "gelu"}, "hidden_act"),
    ("v3", {"scoring_func": "softmax"}, "scoring_func"),
    ("v3", {"topk_method": "greedy"}, "topk_method"),
    ("v3", {"moe_layer_freq": 2}, "moe_layer_freq"),
    ("v3", {"num_key_value_heads": 1}, "num_key_value_heads"),
    ("v3", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "quantization_config"),
    ("v3", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [1.0]}}, "longrope"),
    ("v3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("v3", {"hidden_size": "REMOVE"}, "hidden_size"),
    ("v3", {"hidden_size": "32"}, "hidden_size"),
    ("v3", {"num_hidden_layers": 0}, "num_hidden_layers"),
    ("llama", {"mlp_bias": True}, "mlp_bias"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                                   "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}, "llama3"),
]


@pytest.mark.parametrize("name, changes, piece", UNSUPPORTED, ids=[f"{u[0]}-{'-'.join(u[1])}-{i}" for i, u in enumerate(UNSUPPORTED)])
def test_config(copy, name, changes, piece):
    folder = copy(name)
    change_config(folder, **changes)
    rejected(folder, 2, "config.json", piece)


def test_all_errors_are_reported_together(copy):
    folder = copy("v3")
    change_config(folder, sliding_window=1, attention_bias=True, hidden_size="REMOVE", hidden_act="relu")
    rejected(folder, 2, "sliding_window", "attention_bias", "hidden_size", "hidden_act")


@pytest.mark.parametrize("changes, piece", [({"hidden_size": 64}, "32"), ({"num_hidden_layers": 4}, "model.layers.3."),
                                            ({"num_hidden_layers": 2}, "model.layers.2."), ({"moe_intermediate_size": 8}, "mlp.")])
def test_config_of_another_model(copy, changes, piece):
    folder = copy("v3")
    change_config(folder, **changes)
    rejected(folder, 5, piece)


@pytest.mark.parametrize("changes", [{"num_experts_per_tok": 9}, {"n_group": 3}, {"topk_group": 5}, {"qk_rope_head_dim": 3},
                                     {"num_attention_heads": 0, "num_key_value_heads": 0}, {"rms_norm_eps": -1}, {"vocab_size": 0},
                                     {"n_group": 0}, {"hidden_size": -32}, {"vocab_size": 10**18}])
def test_impossible_sizes(copy, changes):
    folder = copy("v3")
    change_config(folder, **changes)
    before = sorted(p.name for p in folder.parent.iterdir())
    done = oracle.program("dsv3", "import", folder, folder.parent / "checkpoint", check=None)
    assert done.returncode in (2, 5), done.stderr
    assert "error" in done.stderr and "c10::" not in done.stderr and "frame #" not in done.stderr, done.stderr
    assert sorted(p.name for p in folder.parent.iterdir()) == before


# ---- export and other commands

def test_export_into_something(good, tmp_path):
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing/mine.txt").write_text("mine")
    done = oracle.program("dsv3", "export", good / "v3", tmp_path / "existing", check=2)
    assert "already exists" in done.stderr
    assert [p.name for p in (tmp_path / "existing").iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("mine")
    oracle.program("dsv3", "export", good / "v3", tmp_path / "file", check=2)
    assert (tmp_path / "file").read_text() == "mine"


def test_import_into_something(good, tmp_path):
    (tmp_path / "existing").mkdir()
    done = oracle.program("dsv3", "import", good / "v3", tmp_path / "existing", check=2)
    assert "already exists" in done.stderr
    assert not list((tmp_path / "existing").iterdir())


@pytest.mark.parametrize("words, pieces", [
    (["model.position=none"], ["deepseek_v3", "model.position is none", "llama"]),
    (["model.norm.place=post"], ["norm.place is post"]),
    (["model.mtp.concat=hidden_first"], ["model.mtp.concat is hidden_first", "--no-mtp"]),
    (["model.feed_forward.1.shared=0"], ["no shared expert"]),
    (["model.attention={plugin: mha, heads: 2, qk_norm: true}", "model.feed_forward={plugin: swiglu, hidden: 48}", "model.mtp.depth=0"],
     ["qk_norm"])])
def test_models_no_format_can_express(words, pieces, tmp_path):
    import test_folders
    run = test_folders.trained(tmp_path, *words)
    before = sorted(p.name for p in tmp_path.iterdir())
    done = oracle.program("dsv3", "export", run, tmp_path / "hf", check=2)
    for piece in ["no format can express this model", *pieces]:
        assert piece in done.stderr, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_unknown_format(good, tmp_path):
    done = oracle.program("dsv3", "export", good / "v3", tmp_path / "hf", "--format", "lama", check=None)
    assert done.returncode in (2, 3) and "lama" in done.stderr and "llama" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content, piece", [("[]", "list"), ("[[]]", "list"), ("[[1, 2], [3]]", "row 1"), ("[[1, 64]]", "64"),
                                            ("[[1, -1]]", "-1"), ('[["a"]]', '"a"'), ("[[1.5]]", "1.5"), ("{", "tokens.json")])
def test_logits_of_bad_tokens(good, content, piece, tmp_path):
    (tmp_path / "tokens.json").write_text(content)
    done = oracle.program("dsv3", "logits", good / "v3", "--tokens", tmp_path / "tokens.json", "--output", tmp_path / "out", check=None)
    assert done.returncode in (2, 5) and piece in done.stderr, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.json"]
