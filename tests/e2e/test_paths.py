"""Paths with spaces, quotes, '#', ': ', backslashes, brackets and '${}' work in every command."""

import json
import shutil
import subprocess

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from support import BUILD, dsv3_run, last_checkpoint, make_tiny

NAMES = ["a #b", "a: b, c", """it's "q" \\n""", "${HOME} ${train.seed} $${x}", "[draft] {x} y", "- *a &b !c %d @e", " x ", "null"]


def dsv3(*arguments, cwd, check=0):
    done = subprocess.run([BUILD / "bin/dsv3", *map(str, arguments)], cwd=cwd, text=True, errors="replace", capture_output=True,
                          timeout=300)
    assert done.returncode == check, f"exit {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def small_bpe(path):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 50, trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"],
        show_progress=False))
    tokenizer.save(str(path))


@pytest.fixture(scope="module", params=NAMES, ids=repr)
def named(request, tmp_path_factory):
    """Train a run with an unusual name in the paths of its text, tokenizer, experiment and output folder. Return its
    folder and the name."""
    name, folder = request.param, tmp_path_factory.mktemp("paths")
    text = make_tiny(folder).read_text()
    (folder / f"{name}.yaml").write_text(text.replace("name: tiny", "name: tiny\nextends: []"))
    odd = folder / f"odd {name}"
    odd.mkdir()
    shutil.move(folder / "text.txt", odd / f"{name}.txt")
    small_bpe(odd / f"{name}.json")
    dsv3_run(f"{name}.yaml", f"data.path=odd {name}/{name}.txt", "tokenizer=bpe", f"tokenizer.file=odd {name}/{name}.json",
             "train.steps=2", "schedule.warmup=0", "validation.every=0", "--run_name", "r", "--output", f"odd {name}/runs", cwd=folder)
    return folder, name


def run_of(named):
    return f"odd {named[1]}/runs/r"


def test_runs_store_paths_as_values(named):
    folder, name = named
    resolved = yaml.safe_load((folder / run_of(named) / "config.yaml").read_text())
    # `${` starts a reference in YAML, so a literal one is written as `$${`.
    assert resolved["data"]["path"] == f"{folder}/odd {name}/{name}.txt".replace("${", "$${")
    assert resolved["data"]["tokenizer"]["file"] == f"{folder}/odd {name}/{name}.json".replace("${", "$${")
    done = dsv3_run("--run_id", "r", "--output", f"odd {name}/runs", cwd=folder)
    assert "2" in (folder / run_of(named) / "status.json").read_text() and done.returncode == 0


def test_runs_start_from_weights(named):
    folder, name = named
    dsv3_run("--run_name", "s", "--output", f"odd {name}/runs", "--from", run_of(named), f"{name}.yaml", "train.steps=1", "schedule.warmup=0",
             f"data={{plugin: text, path: {json.dumps(f'odd {name}/{name}.txt'.replace('${', '$${'))}}}", "tokenizer=bpe",
             f"tokenizer.file=odd {name}/{name}.json", cwd=folder)


def test_exports_and_imports(named):
    folder, name = named
    dsv3("export", run_of(named), f"odd {name}/hf", cwd=folder)
    dsv3("import", f"odd {name}/hf", f"odd {name}/imported", cwd=folder)
    stored = yaml.safe_load((folder / f"odd {name}/imported/experiment.yaml").read_text())
    assert stored["data"]["tokenizer"]["file"] == str(folder / f"odd {name}/imported/tokenizer.json").replace("${", "$${")
    dsv3("export", run_of(named), f"odd {name}/hf2", "--tokenizer", f"odd {name}/{name}.json", cwd=folder)
    dsv3_run(f"odd {name}/imported/experiment.yaml", "--from", f"odd {name}/imported", f"data.path=odd {name}/{name}.txt",
             "train.steps=1", "train.sequence=48", "schedule.warmup=0", "validation.share=0.3", "--run_name", "t", cwd=folder)
    (folder / f"odd {name}/ids.json").write_text("[[1, 2, 3]]")
    for model in ("hf", "imported"):
        dsv3("logits", f"odd {name}/{model}", "--tokens", f"odd {name}/ids.json", "--output", f"odd {name}/{model}.safetensors", cwd=folder)
    assert (folder / f"odd {name}/hf.safetensors").read_bytes() == (folder / f"odd {name}/imported.safetensors").read_bytes()


def test_generates_and_evaluates(named):
    folder, name = named
    for model in (run_of(named), f"odd {name}/runs/r/checkpoints/{last_checkpoint(folder / run_of(named)).name}"):
        dsv3("generate", model, "--prompt", "the", "--tokens", 2, "--tokenizer", f"odd {name}/{name}.json", cwd=folder)
    table = json.loads(dsv3("eval", run_of(named), "--text", f"odd {name}/{name}.txt", "--limit", 2, "--json", cwd=folder))
    assert table["text"]
    assert "loss" in dsv3("eval", run_of(named), cwd=folder)


def test_prepares_tokens(named):
    folder, name = named
    dsv3("data", "prepare", f"odd {name}/{name}.txt", "--tokenizer", f"odd {name}/{name}.json", "--output", f"odd {name}/shards", cwd=folder)
    dsv3("data", "inspect", f"odd {name}/shards", cwd=folder)
    dsv3_run(f"{name}.yaml", "data=tokens", f"data.path=odd {name}/shards", "tokenizer=bpe", f"tokenizer.file=odd {name}/{name}.json",
             "train.steps=1", "schedule.warmup=0", "--run_name", "u", cwd=folder)


def test_compares_and_extends(named):
    folder, name = named
    (folder / "top.yaml").write_text(json.dumps({"dsv3": 1, "extends": [f"{name}.yaml"], "train": {"seed": 8}}))
    [found] = json.loads(dsv3("compare", f"{name}.yaml", "top.yaml", "--json", cwd=folder))["comparisons"]
    assert [d["key"] for d in found["differences"]] == ["name", "train.seed"] or [d["key"] for d in found["differences"]] == ["train.seed"]
    (folder / f"{name} machine.yaml").write_text("log: {level: warning}\n")
    out = dsv3_run("top.yaml", "--config", f"{name} machine.yaml", "--print-config", cwd=folder).stdout
    assert f"  level: warning  # {name} machine.yaml:1:14\n" in out
