"""Errors when importing and exporting Hugging Face folders."""

import json

from harness import GOLDEN, case, dsv3, prepare_with, trained
from checkpoints import start_from


def exported(folder, *words):
    """Export the tiny model as a Hugging Face folder and return its path."""
    trained(folder)
    prepare_with(folder, "export", "runs/done", "hf", *words, program="dsv3")
    return folder / "hf"


def with_config(folder, **changes):
    hf = exported(folder)
    config = json.loads((hf / "config.json").read_text()) | changes
    (hf / "config.json").write_text(json.dumps(config))
    return dsv3("import", "hf", "imported")


@case(2, "hf/config.json", "'qwen3_moe'", "deepseek_v3, llama")
def import_unknown_architecture(folder):
    """A folder with an unknown architecture."""
    return with_config(folder, model_type="qwen3_moe")


@case(2, "hf/config.json", '"quantization_config"', "fp8")
def import_quantized(folder):
    """A folder with a quantized model."""
    return with_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})


@case(2, GOLDEN)
def import_unsupported_fields(folder):
    """A config.json with several features that dsv3 does not support."""
    return with_config(folder, sliding_window=4096, attention_bias=True, hidden_act="gelu",
                       rope_scaling={"type": "longrope", "factor": 4.0})


@case(5, "hf", "'model.layers.1.mlp.experts.0.gate_proj.weight'", "[16, 32]", "[24, 32]")
def import_edited_config(folder):
    """A config.json that does not match the weights."""
    return with_config(folder, moe_intermediate_size=24)


@case(5, "hf/model.safetensors", "317488", "316488")
def import_truncated(folder):
    """Incompletely downloaded weights."""
    weights = exported(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return dsv3("import", "hf", "imported")


@case(5, GOLDEN)
def import_missing_shard(folder):
    """A folder that lacks one of its weight files."""
    hf = exported(folder, "--shard-size", "50K")
    sorted(hf.glob("model-*.safetensors"))[1].unlink()
    return dsv3("import", "hf", "imported")


@case(5, "hf", "model.safetensors", "pytorch_model.bin")
def import_pytorch_weights(folder):
    """A folder with weights pickled by PyTorch."""
    hf = exported(folder)
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    return dsv3("import", "hf", "imported")


@case(5, "runs/done", "config.json")
def import_run_folder(folder):
    """A run folder instead of a Hugging Face folder."""
    trained(folder)
    return dsv3("import", "runs/done", "imported")


@case(2, "runs/done")
def import_output_exists(folder):
    """Importing to a checkpoint folder that already exists."""
    exported(folder)
    return dsv3("import", "hf", "runs/done")


@case(2, "hf")
def export_output_exists(folder):
    """Exporting to a folder that already exists."""
    exported(folder)
    return dsv3("export", "runs/done", "hf")


@case(2, GOLDEN)
def export_no_format(folder):
    """A model that no Hugging Face architecture can express."""
    trained(folder, "done", "model.position=none", "model.norm.place=post")
    return dsv3("export", "runs/done", "hf")


@case(5, "runs/dnoe")
def export_missing_run(folder):
    """Exporting a run with a misspelled name."""
    trained(folder)
    return dsv3("export", "runs/dnoe", "hf")


@case(2, "--shard-size", "'5 gigabytes'", "5G")
def export_bad_size(folder):
    """An invalid shard size."""
    trained(folder)
    return dsv3("export", "runs/done", "hf", "--shard-size", "5 gigabytes")


@case(2, "tokens.json", "row 0", "300", "256")
def logits_id_out_of_range(folder):
    """A token id outside the model's vocabulary."""
    exported(folder)
    (folder / "tokens.json").write_text("[[1, 2, 300]]")
    return dsv3("logits", "hf", "--tokens", "tokens.json", "--output", "logits.safetensors")


@case(5, "hf", "model.hidden: 32", "64")
def from_huggingface_other_width(folder):
    """--from with a Hugging Face folder of a narrower model."""
    exported(folder)
    return start_from("hf", "model.hidden=64")
