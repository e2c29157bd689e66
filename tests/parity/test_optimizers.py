"""Compares updates of the adamw and muon plugins with torch.optim.AdamW and torch.optim.Muon. The torch optimizers run
in float64 without Muon's cast to bf16, except in the bf16 test. Differences therefore come only from rounding in the
plugins.
"""

import pytest
import torch
from optimizer_driver import updates

SHAPES = [(8, 8), (8, 24), (24, 8), (1, 16), (16, 1), (8, 24)]
FACTORS = [0.1, 1.0, 1.0, 0.5, 0.25, 0.01]


def vectors(scale):
    """Return fixed initial values, and gradients for every update, multiplied by `scale`."""
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator) for shape in SHAPES]
    grads = [[torch.randn(shape, generator=generator) * scale for shape in SHAPES] for _ in FACTORS]
    return values, grads


def ours(name, options, values, grads):
    return updates(name, options, values, grads, FACTORS)


def oracle(make, lr, values, grads, dtype=torch.float64):
    params = [torch.nn.Parameter(value.to(dtype).clone()) for value in values]
    optimizer = make(params)
    after = []
    for factor, update in zip(FACTORS, grads):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        for param, grad in zip(params, update):
            param.grad = grad.to(dtype)
        optimizer.step()
        after.append([param.detach().clone() for param in params])
    return after


def worst(found, expected):
    difference = 0.0
    for mine, theirs in zip(found, expected):
        for a, b in zip(mine, theirs):
            assert torch.isfinite(a).all()
            difference = max(difference, (a.double() - b.double()).abs().max().item())
    return difference


@pytest.fixture
def muon_without_bf16(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8, 1e-12, 0.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw(scale, weight_decay):
    values, grads = vectors(scale)
    lr, betas, eps = 1e-2, (0.9, 0.95), 1e-8
    expected = oracle(
        lambda params: torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay),
        lr, values, grads)
    options = {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": weight_decay}
    assert worst(ours("adamw", options, values, grads), expected) < 2e-6


def muon_pair(scale, values, grads, dtype, ns_dtype, **changes):
    lr = 0.02
    theirs = {"momentum": 0.95, "nesterov": True, "ns_steps": 5, "weight_decay": 0.1, "adjust_lr_fn": scale} | changes
    expected = oracle(lambda params: torch.optim.Muon(params, lr=lr, **theirs), lr, values, grads, dtype)
    options = {"lr": lr, "ns_dtype": ns_dtype, "scale": theirs.pop("adjust_lr_fn")} | theirs
    return worst(ours("muon", options, values, grads), expected)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8, 1e-12, 1e-30, 0.0])
@pytest.mark.parametrize("ratio", ["original", "match_rms_adamw"])
def test_muon(scale, ratio, muon_without_bf16):
    values, grads = vectors(scale)
    assert muon_pair(ratio, values, grads, torch.float64, "fp32") < 5e-6


@pytest.mark.parametrize("changes", [{"nesterov": False}, {"momentum": 0.5}, {"ns_steps": 3}, {"weight_decay": 0.0}])
def test_muon_options(changes, muon_without_bf16):
    values, grads = vectors(1.0)
    assert muon_pair("original", values, grads, torch.float64, "fp32", **changes) < 5e-6


def test_muon_spectral_is_five_times_match_rms_adamw(muon_without_bf16):
    values, grads = vectors(1.0)
    expected = oracle(lambda params: torch.optim.Muon(params, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), 0.02,
                    values, grads, torch.float64)
    options = {"lr": 0.004, "ns_dtype": "fp32", "scale": "spectral", "weight_decay": 0.0}
    assert worst(ours("muon", options, values, grads), expected) < 5e-6


def test_muon_in_bf16():
    """An update changes values by about 0.02. bf16 has 8 bits of precision, and dsv3 and torch round independently."""
    values, grads = vectors(1.0)
    assert muon_pair("original", values, grads, torch.float32, "bf16") < 2e-3


def test_the_comparison_can_fail():
    values, grads = vectors(1.0)
    lr = 1e-2
    expected = oracle(lambda params: torch.optim.AdamW(params, lr=lr, weight_decay=0.1), lr, values, grads)
    assert worst(ours("adamw", {"lr": lr, "beta2": 0.9, "weight_decay": 0.1}, values, grads), expected) > 1e-4
