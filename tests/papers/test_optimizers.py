"""Optimizers from papers: their updates equal the papers' rules, they pass `plugins check`, and training resumes from a
checkpoint bit for bit.

The rules below are written independently of the plugins, with one parameter at a time. They run in float64, except
SOAP's: its first eigenbases belong to matrices of low rank, g g^T and g^T g, so the vectors of the null space depend on
rounding. In fp32 and with the same LAPACK, rule and plugin choose the same ones. Signs of eigenvectors do not matter,
because every basis is applied twice.
"""

import json
import shutil

import pytest
import torch
from conftest import HERE, third_party
from optimizer_driver import updates
from safetensors.torch import load_file

SHAPES = [(8, 8), (8, 12), (12, 8), (1, 16), (16, 1)]
FACTORS = [0.1, 0.5, 1, 1, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25, 0.1]
TOLERANCE = 1e-6  # of the largest value, after each update. The plugins compute in fp32, with a precision of 6e-8.


def lion(w, grads, lr, beta1, beta2, weight_decay):
    m = torch.zeros_like(w)
    for factor, g in zip(FACTORS, grads):
        c = beta1 * m + (1 - beta1) * g
        w = w - factor * lr * (torch.sign(c) + weight_decay * w)
        m = beta2 * m + (1 - beta2) * g
        yield w, w


def newton_schulz(m):
    if m.shape[0] > m.shape[1]:
        return newton_schulz(m.T).T
    x = m / m.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
    return x


def normuon(w, grads, lr, beta1, beta2, eps, weight_decay):
    m, v = torch.zeros_like(w), torch.zeros(len(w), dtype=w.dtype)
    for factor, g in zip(FACTORS, grads):
        m = beta1 * m + (1 - beta1) * g
        o = newton_schulz(m)
        v = beta2 * v + (1 - beta2) * (o * o).mean(dim=1)
        o = o / (v.sqrt()[:, None] + eps)
        w = w - factor * lr * weight_decay * w - 0.2 * factor * lr * w.numel() ** 0.5 / o.norm() * o
        yield w, w


def soap(w, grads, lr, beta1, beta2, eps, weight_decay, frequency):
    """Keeps the first moment in the eigenbasis, as the authors' code does, and the plugin does not."""
    grads = [g.float() for g in grads]
    w, l, r = w.float(), torch.zeros(len(w), len(w)), torch.zeros(w.shape[1], w.shape[1])
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, (factor, g) in enumerate(zip(FACTORS, grads)):
        if t > 0:
            rotated = p.T @ g @ q
            m = beta1 * m + (1 - beta1) * rotated
            v = beta2 * v + (1 - beta2) * rotated ** 2
            bias = (1 - beta2 ** t) ** 0.5 / (1 - beta1 ** t)
            w = w - factor * lr * bias * (p @ (m / (v.sqrt() + eps)) @ q.T)
            w = w - factor * lr * weight_decay * w
        l, r = torch.lerp(l, g @ g.T, 1 - beta2), torch.lerp(r, g.T @ g, 1 - beta2)
        if t == 0:
            p, q = (torch.linalg.eigh(s).eigenvectors.flip(1) for s in (l, r))
        elif t % frequency == 0:
            m = p @ m @ q.T
            order = [torch.argsort((b.T @ s @ b).diagonal(), descending=True) for b, s in ((p, l), (q, r))]
            v = v[order[0]][:, order[1]]
            p, q = (torch.linalg.qr(s @ b[:, o]).Q for b, s, o in zip((p, q), (l, r), order))
            m = p.T @ m @ q
        yield w, w


def schedule_free(y, grads, lr, beta1, beta2, eps, weight_decay):
    """Keeps x, which the plugin computes from y and z."""
    x, z, v, squares = y, y, torch.zeros_like(y), 0
    for t, (factor, g) in enumerate(zip(FACTORS, grads), 1):
        v = beta2 * v + (1 - beta2) * g * g
        z = z - factor * lr * (g / ((v / (1 - beta2 ** t)).sqrt() + eps) + weight_decay * y)
        squares += (factor * lr) ** 2
        c = (factor * lr) ** 2 / squares
        x = (1 - c) * x + c * z
        y = (1 - beta1) * z + beta1 * x
        yield y, x


ADAM = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
OPTIONS = {
    "lion": (lion, {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}),
    "normuon": (normuon, ADAM),
    "soap": (soap, ADAM | {"frequency": 3}),
    "schedule_free": (schedule_free, ADAM),
}
NAMES = list(OPTIONS)


def largest_difference(name, papers, changes=None):
    """Return the largest difference between plugin and rule, relative to the largest value of the tensor."""
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator) * 0.1 for shape in SHAPES]
    grads = [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in FACTORS]
    rule, options = OPTIONS[name]
    found = updates(name, options | (changes or {}), values, grads, FACTORS, papers)
    worst = 0.0
    for i, value in enumerate(values):
        expected = rule(value.double(), [update[i].double() for update in grads], **options)
        for after, (trained, evaluated) in zip(found, expected, strict=True):
            pairs = [(after[i], trained)]
            if len(after) > len(values):
                pairs.append((after[len(values) + i], evaluated))
            for ours, theirs in pairs:
                worst = max(worst, ((ours - theirs).abs().max() / theirs.abs().max()).item())
    return worst


@pytest.mark.parametrize("name", NAMES)
def test_updates_equal_the_papers(name, papers):
    assert largest_difference(name, papers) < TOLERANCE


@pytest.mark.parametrize("name, changes", [
    ("lion", {"beta1": 0.89}), ("normuon", {"beta2": 0.94}), ("soap", {"frequency": 4}),
    ("schedule_free", {"weight_decay": 0.11})])
def test_the_comparison_can_fail(name, changes, papers):
    assert largest_difference(name, papers, changes) > 100 * TOLERANCE


def test_schedule_free_has_evaluation_weights(papers):
    value = torch.ones(1, 1)
    assert len(updates("schedule_free", {}, [value], [[value]], [1], papers)[0]) == 2
    assert len(updates("lion", {}, [value], [[value]], [1], papers)[0]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_check_passes(name, prefix, papers):
    output = third_party(prefix / "bin/dsv3", "plugins", "check", f"optimizer/{name}", "--plugin-path", papers, cwd=papers)
    assert "FAIL" not in output and "resume" in output


def write_experiment(folder, name):
    (folder / "text.txt").write_text("\n\n".join(f"line {i} of the text, {i * i}" for i in range(300)))
    optimizer = f"[{{role: matrix, plugin: {name}}}, {{plugin: adamw}}]" if name in ("normuon", "soap") else f"{{plugin: {name}}}"
    (folder / "tiny.yaml").write_text(f"""\
dsv3: 1
name: tiny
model:
  hidden: 32
  layers: 2
  vocab: auto
  attention: {{plugin: mha, heads: 2}}
  position: {{plugin: rope}}
  feed_forward: {{plugin: swiglu, hidden: 48}}
optimizer: {optimizer}
schedule: {{plugin: cosine, warmup: 2}}
strategy: {{plugin: single}}
data: {{plugin: text, path: text.txt, tokenizer: {{plugin: bytes}}}}
train: {{steps: 6, batch: 4, sequence: 32, precision: fp32, seed: 1, log_every: 1}}
validation: {{every: 1, batches: 1, share: 0.4}}
samples: {{every: 0}}
checkpoint: {{every: 3}}
tracker: []
""")


@pytest.fixture(scope="module", params=NAMES)
def trained(request, prefix, papers, tmp_path_factory):
    """Return the folder in which runs/whole was trained for six steps."""
    folder = tmp_path_factory.mktemp(request.param)
    write_experiment(folder, request.param)
    third_party(prefix / "bin/dsv3-run", "tiny.yaml", "--run_name", "whole", "--plugin-path", papers, cwd=folder)
    return folder


LAST = "checkpoints/step-6/rank-00000.safetensors"


def test_three_steps_and_three_resumed_ones_equal_six(prefix, papers, trained):
    whole, resumed = trained / "runs/whole", trained / "runs/resumed"
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoints/step-6")
    third_party(prefix / "bin/dsv3-run", "--run_id", "resumed", "--plugin-path", papers, cwd=trained)
    assert (resumed / LAST).read_bytes() == (whole / LAST).read_bytes()


def test_validation_and_stored_models_use_evaluation_weights(prefix, papers, trained):
    run = trained / "runs/whole"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    output = third_party(prefix / "bin/dsv3", "eval", run, "--json", "--plugin-path", papers, cwd=trained)
    assert json.loads(output)["validation"]["loss"] == rows[-1]["val/loss"]
    tensors = load_file(run / LAST)
    names = [name.removeprefix("evaluation/") for name in tensors if name.startswith("evaluation/")]
    assert bool(names) == ("optimizer/lr_squares/head.weight" in tensors)
    for name in names:
        assert not torch.equal(tensors[f"evaluation/{name}"], tensors[f"model/{name}"])


def test_papers_are_short():
    for file in HERE.glob("*.cpp"):
        assert len(file.read_text().splitlines()) < 80, file
