"""Incompatible and damaged checkpoints."""

import hashlib
import json
import shutil

from harness import GOLDEN, case, dsv3_run, experiment, trained


DONE = "runs/done"
LAST = "runs/done/checkpoints/step-3"
SETTINGS = ("train.steps=3", "schedule.warmup=0", "checkpoint.every=1", "validation.every=0")  # those of trained()


def start_from(checkpoint, *words, file="tiny.yaml"):
    return dsv3_run(file, *words, "--from", checkpoint, "--run_name", "new")


def rewrite(checkpoint, manifest):
    """Write the changed manifest with an updated digest."""
    manifest.pop("sha256")
    # dsv3 computes the digest from JSON with sorted keys and no spaces.
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@case(5, "runs/dnoe")
def from_missing(folder):
    """--from with a path that does not exist."""
    experiment(folder)
    return start_from("runs/dnoe")


@case(5, GOLDEN)
def from_pytorch_file(folder):
    """--from with a file saved by PyTorch."""
    experiment(folder)
    (folder / "model.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    return start_from("model.pt")


@case(5, "runs/done", "manifest.json", "config.json")
def from_run_without_checkpoints(folder):
    """--from with a run that has no checkpoint."""
    trained(folder)
    shutil.rmtree(folder / DONE / "checkpoints")
    return start_from(DONE)


@case(5, LAST, "model.hidden: 32", "64", "`model`")
def from_other_width(folder):
    """--from with a checkpoint of a narrower model."""
    trained(folder)
    return start_from(LAST, "model.hidden=64")


@case(5, LAST, "model.attention.plugin: mla", "mha", "model.attention.q_lora_rank: 16", "model.attention.kv_heads")
def from_other_attention(folder):
    """--from with a checkpoint of a model with a different attention plugin."""
    trained(folder)
    return start_from(LAST, "attention=mha")


@case(5, GOLDEN)
def from_fewer_layers(folder):
    """--from with a checkpoint of a model with fewer layers."""
    trained(folder)
    return start_from(LAST, "model.layers=4")


@case(5, LAST, "model.layers: 3", "model.feed_forward.1.layers: 1-2")
def from_more_layers(folder):
    """--from with a checkpoint of a model with more layers."""
    trained(folder)
    return start_from(LAST, "model.layers=2")


@case(5, LAST, "position.rope.layout", "model.position.layout: interleaved")
def from_other_rope_layout(folder):
    """--from with a checkpoint that uses a different rotary layout."""
    trained(folder)
    return start_from(LAST, "model.position.layout=half")


@case(5, GOLDEN)
def from_torchtitan_conventions(folder):
    """--from with a checkpoint that uses different conventions."""
    trained(folder)
    (folder / "titan.yaml").write_text("dsv3: 1\nextends: tiny.yaml\nconventions:\n  model.mtp.input: raw\n"
                                       "  attention.mla.muon_split: per_head\n  feed_forward.moe.bias_update: centered\n")
    return start_from(LAST, file="titan.yaml")


@case(5, LAST, "tokenizer", "bytes")
def from_other_tokenizer(folder):
    """--from with a checkpoint that was trained with a different tokenizer."""
    last = trained(folder)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["state"]["tokenizer"] = "0" * 64
    rewrite(last, manifest)
    return start_from(LAST)


@case(5, GOLDEN)
def from_corrupted(folder):
    """--from with a checkpoint that has a flipped bit."""
    tensors = trained(folder) / "rank-00000.safetensors"
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    return start_from(LAST)


@case(5, LAST + "/rank-00000.safetensors", "10000 bytes", "593536")
def from_truncated(folder):
    """--from with an incomplete copy of a checkpoint."""
    tensors = trained(folder) / "rank-00000.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:10_000])
    return start_from(LAST)


@case(5, LAST + "/rank-00000.safetensors", "No such file or directory")
def from_without_tensors(folder):
    """--from with a checkpoint without its tensor file."""
    (trained(folder) / "rank-00000.safetensors").unlink()
    return start_from(LAST)


@case(5, LAST, "manifest.json", "config.json")
def from_without_manifest(folder):
    """--from with a checkpoint without its manifest."""
    (trained(folder) / "manifest.json").unlink()
    return start_from(LAST)


@case(5, LAST + "/manifest.json", "digest")
def from_edited_manifest(folder):
    """--from with a checkpoint whose manifest was edited."""
    last = trained(folder)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["step"] = 300
    (last / "manifest.json").write_text(json.dumps(manifest))
    return start_from(LAST)


@case(5, GOLDEN)
def from_broken_manifest(folder):
    """--from with a checkpoint whose manifest is incomplete."""
    manifest = trained(folder) / "manifest.json"
    manifest.write_text(manifest.read_text()[:200])
    return start_from(LAST)


@case(5, LAST + "/manifest.json", "format 3", "this dsv3 reads")
def from_later_format(folder):
    """--from with a checkpoint in a later format version."""
    last = trained(folder)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["format"] = 3
    rewrite(last, manifest)
    return start_from(LAST)


@case(2, GOLDEN)
def resume_changed_keys(folder):
    """Resuming a run with changed settings."""
    trained(folder)
    return dsv3_run("tiny.yaml", *SETTINGS, "train.seed=8", "model.hidden=64",
                    "--run_id", "done")


@case(2, "'done'", "model.attention.heads: 2", "4", "--run_id done", "--from")
def resume_changed_file(folder):
    """Resuming a run whose experiment file has changed."""
    trained(folder)
    experiment(folder, ("heads: 2", "heads: 4"))
    return dsv3_run("tiny.yaml", *SETTINGS, "--run_name", "done", "--resume", "auto")


@case(5, GOLDEN)
def resume_all_damaged(folder):
    """Resuming a run whose checkpoints are all damaged."""
    trained(folder)
    for tensors in (folder / DONE / "checkpoints").glob("*/rank-00000.safetensors"):
        tensors.write_bytes(b"")
    return dsv3_run("--run_id", "done")


@case(4, GOLDEN)
def resume_changed_data(folder):
    """Resuming a run whose training text has changed."""
    trained(folder)
    (folder / "text.txt").write_text((folder / "text.txt").read_text().upper())
    return dsv3_run("--run_id", "done")


@case(2, "FOLDER/runs/done/config.yaml:2:8", "'{'", "'}'")
def resume_damaged_config(folder):
    """Resuming a run whose config.yaml is damaged."""
    trained(folder)
    (folder / DONE / "config.yaml").write_text("dsv3: 1\nmodel: {hidden: 32\n")
    return dsv3_run("--run_id", "done")
