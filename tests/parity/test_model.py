"""Logits, losses, gradients, expert choices and bias updates of dsv3 equal those of Transformers."""

import json

import pytest
import torch
from safetensors.torch import load_file

import oracle

ROWS, LENGTH = 3, 40


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    driver = oracle.Driver(tmp_path_factory.mktemp("driver"))
    yield driver
    driver.close()


@pytest.fixture(scope="module", params=oracle.MODELS)
def case(request, tmp_path_factory):
    """Return (name, Transformers model, its folder)."""
    model = oracle.spread(oracle.make(request.param), request.param)
    return request.param, model, oracle.store(model, tmp_path_factory.mktemp("model"))


def test_logits(case, worst, tmp_path):
    name, model, folder = case
    tokens = torch.randint(0, model.config.vocab_size, (2, 60), generator=torch.Generator().manual_seed(1))
    (tmp_path / "tokens.json").write_text(json.dumps(tokens.tolist()))
    oracle.program("dsv3", "logits", folder, "--tokens", tmp_path / "tokens.json", "--output", tmp_path / "out")
    with torch.no_grad():
        expected = model(tokens).logits
    assert worst("logits", oracle.largest(load_file(tmp_path / "out")["logits"], expected), name) < 1e-4


def alpha_of(name):
    """Return the weight of the balance loss, which is enabled for every second model."""
    return 0.02 if oracle.MODELS.index(name) % 2 else 0.0


def oracle_step(name, model, rows):
    """Return Transformers' loss, gradients and chosen experts, with the report's balance loss."""
    model.zero_grad()
    with oracle.Routers(oracle.gates(model)) as routers:
        _, normed = oracle.decoder(model, rows)
    targets = rows.targets(1)
    loss = oracle.cross_entropy_sum(model.lm_head(normed), targets) / (targets >= 0).sum()
    (loss + alpha_of(name) * routers.balance_loss(ROWS) / ROWS).backward()
    return loss.detach(), oracle.gradients(model), routers.chosen()


def settings_of(name, model):
    """Return the override that sets the balance loss for moe, the last entry in model.feed_forward."""
    if not oracle.gates(model):
        return []
    return [f"model.feed_forward.{int(model.config.first_k_dense_replace > 0)}.balance_alpha={alpha_of(name)}"]


def test_step(case, driver, worst):
    name, model, folder = case
    rows = oracle.make_rows(name, ROWS, LENGTH, model.config.vocab_size, padding=5)
    ours = driver.run(folder, oracle.format_of(name), rows, settings_of(name, model), micro_batch=2)
    loss, gradients, chosen = oracle_step(name, model, rows)

    assert worst("losses", oracle.relative(ours["loss/total"], loss), name) < 1e-5
    assert oracle.relative(ours["loss/total"], ours["loss/main"]) < 1e-6  # the balance loss affects only gradients
    assert {key.removeprefix("grad/") for key in ours if key.startswith("grad/")} == set(gradients)
    for key, expected in gradients.items():
        difference = oracle.relative(ours["grad/" + key], expected)
        assert worst("gradients", difference, f"{name}: {key}") < 1e-3, key

    found = [ours[key] for key in sorted((k for k in ours if k.startswith("choices/")), key=lambda k: int(k[8:]))]
    assert len(found) == len(chosen)
    for gate, mine, theirs in zip(oracle.gates(model), found, chosen):
        assert torch.equal(mine, theirs)
        assert int(mine.sum()) == ROWS * LENGTH * gate.top_k
    layers = [i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")] if chosen else []
    for layer, gate, theirs in zip(layers, oracle.gates(model), chosen):
        counts = theirs.sum(0)
        assert torch.equal(ours[f"counts/{layer}"], counts)
        expected = gate.e_score_correction_bias + oracle.bias_change(counts)
        after = ours[f"after/model.layers.{layer}.mlp.gate.e_score_correction_bias"]
        assert torch.allclose(after, expected, rtol=0, atol=1e-6)
        assert not torch.allclose(after, gate.e_score_correction_bias, rtol=0, atol=5e-4)


def test_every_option_is_covered():
    """Every option has different values in at least two models."""
    configs = [oracle.make(name).config for name in oracle.DEEPSEEK_MODELS]
    for option in ("q_lora_rank", "rope_interleave", "n_group", "topk_group", "norm_topk_prob", "n_shared_experts",
                   "tie_word_embeddings", "rms_norm_eps", "routed_scaling_factor", "num_experts_per_tok"):
        assert len({getattr(config, option) for config in configs}) > 1, option
    places = {(c.first_k_dense_replace > 0) + (c.first_k_dense_replace >= c.num_hidden_layers) for c in configs}
    assert places == {0, 1, 2}
    ropes = [config.rope_parameters for config in configs]
    assert sum(rope["rope_type"] == "yarn" for rope in ropes) >= 4
    assert any(rope.get("original_max_position_embeddings", 100) < LENGTH for rope in ropes)
    assert len({rope["rope_theta"] for rope in ropes}) > 2


@pytest.mark.parametrize("changes", [["model.norm.eps=1e-2"], ["model.position.layout=half"],
                                     ["model.feed_forward.1.routed_scale=1.0"], ["model.feed_forward.1.balance_alpha=0.1"]])
def test_the_comparison_can_fail(changes, driver, tmp_path):
    model = oracle.spread(oracle.make("v3"), "v3")
    rows = oracle.make_rows("v3", ROWS, LENGTH)
    ours = driver.run(oracle.store(model, tmp_path), "deepseek_v3", rows, changes)
    _, gradients, _ = oracle_step("v3", model, rows)
    assert max(oracle.relative(ours["grad/" + key], expected) for key, expected in gradients.items()) > 1e-3
