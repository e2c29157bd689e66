"""Mistakes with checkpoints, and damaged ones."""

import json
import shutil

from harness import dsv3_run, experiment, mistake, trained


def start_from(checkpoint, *words):
    return dsv3_run("tiny.yaml", *words, "--from", checkpoint, "--run_name", "new")


DONE = "runs/done"
LAST = "runs/done/checkpoints/step-3"


@mistake(5)
def from_missing(folder):
    """--from names nothing."""
    experiment(folder)
    return start_from("runs/dnoe")


@mistake(5)
def from_pytorch_file(folder):
    """--from names a checkpoint of PyTorch."""
    experiment(folder)
    (folder / "model.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    return start_from("model.pt")


@mistake(5)
def from_run_without_checkpoints(folder):
    """--from names a run that has no checkpoint."""
    trained(folder)
    shutil.rmtree(folder / DONE / "checkpoints")
    return start_from(DONE)


@mistake(5)
def from_other_width(folder):
    """--from names a checkpoint of a narrower model."""
    trained(folder)
    return start_from(LAST, "model.hidden=64")


@mistake(5)
def from_other_attention(folder):
    """--from names a checkpoint of a model with another attention."""
    trained(folder)
    return start_from(LAST, "attention=mha")


@mistake(5)
def from_fewer_layers(folder):
    """--from names a checkpoint of a model with fewer layers."""
    trained(folder)
    return start_from(LAST, "model.layers=4")


@mistake(5)
def from_more_layers(folder):
    """--from names a checkpoint of a model with more layers."""
    trained(folder)
    return start_from(LAST, "model.layers=2")


@mistake(5)
def from_other_convention(folder):
    """--from names a checkpoint whose rotary layout is another one."""
    trained(folder)
    return start_from(LAST, "model.position.layout=half")


@mistake(5)
def from_torchtitan_conventions(folder):
    """--from names a checkpoint of DeepSeek's conventions, but the experiment has torchtitan's."""
    trained(folder)
    return start_from(LAST, "model.conventions=torchtitan")


@mistake(5)
def from_other_tokenizer(folder):
    """--from names a checkpoint that was trained with another tokenizer."""
    last = trained(folder)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["state"]["tokenizer"] = "0" * 64
    rewrite(last, manifest)
    return start_from(LAST)


def rewrite(checkpoint, manifest):
    """Writes a manifest whose digest fits."""
    import hashlib
    manifest.pop("sha256")
    # As the program dumps it: keys in order, no blanks.
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@mistake(5)
def from_corrupted(folder):
    """--from names a checkpoint of which a bit was flipped."""
    tensors = trained(folder) / "rank-00000.safetensors"
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    return start_from(LAST)


@mistake(5)
def from_truncated(folder):
    """--from names a checkpoint that was cut off while it was copied."""
    tensors = trained(folder) / "rank-00000.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:10_000])
    return start_from(LAST)


@mistake(5)
def from_without_tensors(folder):
    """--from names a checkpoint whose tensors were not copied."""
    (trained(folder) / "rank-00000.safetensors").unlink()
    return start_from(LAST)


@mistake(5)
def from_without_manifest(folder):
    """--from names a checkpoint whose manifest was not copied."""
    (trained(folder) / "manifest.json").unlink()
    return start_from(LAST)


@mistake(5)
def from_edited_manifest(folder):
    """The manifest was edited by hand."""
    last = trained(folder)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["step"] = 300
    (last / "manifest.json").write_text(json.dumps(manifest))
    return start_from(LAST)


@mistake(5)
def from_broken_manifest(folder):
    """The manifest is cut off."""
    manifest = trained(folder) / "manifest.json"
    manifest.write_text(manifest.read_text()[:200])
    return start_from(LAST)


@mistake(5)
def from_later_format(folder):
    """The checkpoint was written by a later dsv3."""
    last = trained(folder)
    manifest = json.loads((last / "manifest.json").read_text())
    manifest["format"] = 2
    rewrite(last, manifest)
    return start_from(LAST)


@mistake(2)
def resume_changed_keys(folder):
    """A run is to go on with changed settings."""
    trained(folder)
    return dsv3_run("tiny.yaml", "train.steps=3", "checkpoint.every=1", "validation.every=0", "train.seed=8", "model.hidden=64",
                    "--run_id", "done")


@mistake(2)
def resume_changed_file(folder):
    """The experiment's file was changed since the run was started, and the run is to go on."""
    trained(folder)
    experiment(folder, ("heads: 2", "heads: 4"))
    return dsv3_run("tiny.yaml", "train.steps=3", "checkpoint.every=1", "validation.every=0", "--run_name", "done", "--resume", "auto")


@mistake(5)
def resume_all_damaged(folder):
    """A run is to go on, but all its checkpoints are damaged."""
    trained(folder)
    for tensors in (folder / DONE / "checkpoints").glob("*/rank-00000.safetensors"):
        tensors.write_bytes(b"")
    return dsv3_run("--run_id", "done")


@mistake(4)
def resume_changed_data(folder):
    """The text was changed since the run's last checkpoint."""
    trained(folder)
    (folder / "text.txt").write_text((folder / "text.txt").read_text() + "\n\nOne more paragraph of text.\n")
    return dsv3_run("--run_id", "done")


@mistake(2)
def resume_damaged_config(folder):
    """The run's own settings were damaged."""
    trained(folder)
    (folder / DONE / "config.yaml").write_text("dsv3: 1\nmodel: {hidden: 32\n")
    return dsv3_run("--run_id", "done")
