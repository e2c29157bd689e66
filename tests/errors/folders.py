"""Mistakes with Hugging Face folders, in and out."""

import json

from harness import dsv3, mistake, quiet_run, trained
from checkpoints import start_from


def exported(folder, *words):
    """The tiny model as a Hugging Face folder; its path."""
    trained(folder)
    quiet_run(folder, "export", "runs/done", "hf", *words, program="dsv3")
    return folder / "hf"


def with_config(folder, **changes):
    hf = exported(folder)
    config = json.loads((hf / "config.json").read_text()) | changes
    (hf / "config.json").write_text(json.dumps(config))
    return dsv3("import", "hf", "imported")


@mistake(2)
def import_unknown_architecture(folder):
    """The folder is of an architecture that no format reads."""
    return with_config(folder, model_type="qwen3_moe")


@mistake(2)
def import_quantized(folder):
    """The folder holds a quantized model."""
    return with_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})


@mistake(2)
def import_unsupported_fields(folder):
    """config.json asks for several things that dsv3 does not compute."""
    return with_config(folder, sliding_window=4096, attention_bias=True, hidden_act="gelu",
                       rope_scaling={"type": "longrope", "factor": 4.0})


@mistake(5)
def import_other_sizes(folder):
    """config.json was edited, and the weights are of other sizes."""
    return with_config(folder, moe_intermediate_size=24)


@mistake(5)
def import_truncated(folder):
    """The weights were cut off while they were downloaded."""
    weights = exported(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return dsv3("import", "hf", "imported")


@mistake(5)
def import_missing_shard(folder):
    """One of the files of weights was not downloaded."""
    hf = exported(folder, "--shard-size", "50K")
    sorted(hf.glob("model-*.safetensors"))[1].unlink()
    return dsv3("import", "hf", "imported")


@mistake(5)
def import_pytorch_weights(folder):
    """The folder has only the weights that PyTorch pickled."""
    hf = exported(folder)
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")
    return dsv3("import", "hf", "imported")


@mistake(5)
def import_no_folder(folder):
    """The folder is a run, not one of Hugging Face."""
    trained(folder)
    return dsv3("import", "runs/done", "imported")


@mistake(2)
def import_output_exists(folder):
    """The checkpoint to make is there already."""
    exported(folder)
    return dsv3("import", "hf", "runs/done")


@mistake(2)
def export_output_exists(folder):
    """The folder to make is there already."""
    exported(folder)
    return dsv3("export", "runs/done", "hf")


@mistake(2)
def export_no_format(folder):
    """No architecture of Hugging Face is like the model."""
    trained(folder, "done", "model.position=none", "model.norm.place=post")
    return dsv3("export", "runs/done", "hf")


@mistake(5)
def export_missing_run(folder):
    """The run to export is misspelt."""
    trained(folder)
    return dsv3("export", "runs/dnoe", "hf")


@mistake(2)
def export_bad_size(folder):
    """The shard's size is no size."""
    trained(folder)
    return dsv3("export", "runs/done", "hf", "--shard-size", "5 gigabytes")


@mistake(2)
def logits_id_beyond(folder):
    """A token id is beyond the model's vocabulary."""
    exported(folder)
    (folder / "tokens.json").write_text("[[1, 2, 300]]")
    return dsv3("logits", "hf", "--tokens", "tokens.json", "--out", "logits.safetensors")


@mistake(5)
def from_folder_of_another_width(folder):
    """--from names a Hugging Face folder of a narrower model."""
    exported(folder)
    return start_from("hf", "model.hidden=64")
