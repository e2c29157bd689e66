"""Layers from papers: they pass `plugins check`, training resumes from a checkpoint bit for bit, and generation with a
cache equals generation without one."""

import json
import shutil

import pytest
from conftest import third_party

LAYERS = {"attention": ["gated_attention", "sliding_window"], "feed_forward": ["sparse_relu", "swiglu_dropout"]}
COMPONENTS = [(kind, name) for kind, names in LAYERS.items() for name in names]


@pytest.fixture
def train(prefix, papers, tmp_path):
    """Return a function that trains a tiny model and returns its run folder."""
    (tmp_path / "text.txt").write_text("\n\n".join(f"line {i} of the text, {i * i}" for i in range(300)))
    (tmp_path / "tiny.yaml").write_text("""\
dsv3: 1
name: tiny
model:
  hidden: 32
  layers: 2
  vocab: auto
  attention: {plugin: mha, heads: 2}
  position: {plugin: rope}
  feed_forward: {plugin: swiglu, hidden: 48}
optimizer: [{plugin: adamw}]
schedule: {plugin: cosine, warmup: 2}
strategy: {plugin: single}
data: {plugin: text, path: text.txt, tokenizer: {plugin: bytes}}
train: {steps: 6, batch: 4, sequence: 32, precision: fp32, seed: 1, log_every: 1}
validation: {every: 3, batches: 1, share: 0.4}
samples: {every: 0}
checkpoint: {every: 3}
tracker: []
""")

    def run(name, *settings):
        experiment = ["--run_id", name] if (tmp_path / "runs" / name).exists() else ["tiny.yaml", "--run_name", name]
        third_party(prefix / "bin/dsv3-run", *experiment, *settings, "--plugin-path", papers, cwd=tmp_path)
        return tmp_path / "runs" / name

    return run


def metrics(run):
    """Return the metrics of each logged step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "train/loss" in line}


def parameters(run):
    return (run / "checkpoints/step-6/rank-00000.safetensors").read_bytes()


@pytest.mark.parametrize("component, settings", [
    ("attention/gated_attention", []), ("attention/sliding_window", []), ("attention/sliding_window", ["window=3"]),
    ("feed_forward/sparse_relu", []), ("feed_forward/swiglu_dropout", ["dropout=0.5"])])
def test_check_passes(component, settings, prefix, papers):
    output = third_party(prefix / "bin/dsv3", "plugins", "check", component, "--plugin-path", papers,
                         *[word for setting in settings for word in ("--set", setting)], cwd=papers)
    assert "FAIL" not in output and "gradients" in output


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("kind, name", COMPONENTS)
def test_three_steps_and_three_resumed_ones_equal_six(kind, name, recompute, train, tmp_path):
    whole = train("whole", f"model.{kind}={{plugin: {name}}}", f"model.recompute={recompute}")
    shutil.copytree(whole, tmp_path / "runs/resumed")
    shutil.rmtree(tmp_path / "runs/resumed/checkpoints/step-6")
    resumed = train("resumed")
    assert "resuming from step 3" in (resumed / "log.txt").read_text()
    assert parameters(resumed) == parameters(whole)


def test_dropout_does_not_depend_on_the_micro_batch(train):
    layer = "model.feed_forward={plugin: swiglu_dropout, dropout: %s}"
    whole = metrics(train("whole", layer % 0.4, "train.micro_batch=4"))
    split = metrics(train("split", layer % 0.4, "train.micro_batch=1", "model.recompute=full"))
    without = metrics(train("without", layer % 0, "train.micro_batch=4"))
    for step in whole:
        assert split[step]["train/loss"] == pytest.approx(whole[step]["train/loss"], rel=1e-5)
        assert abs(without[step]["train/loss"] - whole[step]["train/loss"]) > 1e-6


def test_layers_record_metrics(train, prefix, papers):
    run = train("recorded", "model.feed_forward={plugin: sparse_relu}", "model.attention={plugin: sliding_window, window: 5}")
    for line in metrics(run).values():
        layers = [line[f"relu/active/{layer}"] for layer in range(2)]
        assert all(0 < share < 1 for share in layers)
        assert line["relu/active"] == pytest.approx(sum(layers) / 2)
        assert line["attention/max_logit"] > 0
    described = third_party(prefix / "bin/dsv3", "plugins", "describe", "feed_forward/sparse_relu", "--plugin-path", papers,
                            cwd=papers)
    assert "relu/active/<layer>" in described and "fraction" in described


@pytest.mark.parametrize("attention, window", [("gated_attention", None), ("sliding_window", 3), ("sliding_window", 100)])
def test_generation_with_a_cache_equals_generation_without(attention, window, train, prefix, papers, tmp_path):
    options = "" if window is None else f", window: {window}"
    run = train("trained", f"model.attention={{plugin: {attention}{options}}}", "model.mtp.depth=1", "train.steps=3")

    def generate(*words):
        return third_party(prefix / "bin/dsv3", "generate", run, "--prompt", "line 12 of", "--prompt", "the text",
                           "--tokens", 40, "--temperature", 0, "--plugin-path", papers, *words, cwd=tmp_path)

    assert generate("--speculate") == generate("--no-speculate") == generate("--no-cache")


@pytest.mark.usefixtures("train")
def test_a_dry_run_states_the_window_of_the_cache(prefix, papers, tmp_path):
    output = third_party(prefix / "bin/dsv3-run", "tiny.yaml", "model.attention={plugin: sliding_window, window: 8}", "--dry-run",
                         "--plugin-path", papers, cwd=tmp_path)
    assert "in 2 layer(s) of fp32; 2 layer(s) cache at most 8 tokens" in output
