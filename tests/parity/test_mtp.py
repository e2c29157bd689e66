"""Compares multi-token prediction under every convention with a PyTorch implementation of the report's section 2.2.

The blocks are Transformers' decoder layers, which test_model.py compares. Everything around them is implemented here.
"""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import oracle

ROWS, LENGTH, WEIGHT = 4, 30, 0.3
CONVENTIONS = list(itertools.product(["normed", "raw"], ["embedding_first", "hidden_first"], ["main", "own"]))


class Mtp:
    """Module k of the report: h^k = block(M [RMSNorm(Emb(t_{i+k})); RMSNorm(h^{k-1})]), with the head and embedding
    of the main model."""

    def __init__(self, model, layer):
        self.model, self.block, width = model, model.model.layers[layer], model.config.hidden_size
        random = torch.Generator().manual_seed(layer)
        self.own = {"enorm.weight": torch.rand(width, generator=random) + 0.5,
                    "hnorm.weight": torch.rand(width, generator=random) + 0.5,
                    "eh_proj.weight": torch.randn(width, 2 * width, generator=random) * 0.1,
                    "shared_head.norm.weight": torch.rand(width, generator=random) + 0.5}
        for parameter in self.own.values():
            parameter.requires_grad_()

    def norm(self, x, name):
        return x * (x.pow(2).mean(-1, keepdim=True) + self.model.config.rms_norm_eps).rsqrt() * self.own[name]

    def forward(self, tokens, hidden, rows, concat):
        """Return the hidden states before and after the module's final norm."""
        parts = [self.norm(self.model.model.embed_tokens(tokens), "enorm.weight"), self.norm(hidden, "hnorm.weight")]
        joined = torch.cat(parts if concat == "embedding_first" else parts[::-1], -1) @ self.own["eh_proj.weight"].T
        angles = self.model.model.rotary_emb(joined, rows.positions)
        raw = self.block(joined, attention_mask=rows.mask, position_embeddings=angles)
        return raw, self.norm(raw, "shared_head.norm.weight")


class Oracle:
    """A model with `layers` layers followed by its MTP modules."""

    def __init__(self, name, depth):
        self.depth = depth
        self.model = oracle.spread(oracle.make(name, more_layers=depth), name)
        self.model.config.num_hidden_layers -= depth
        self.layers = self.model.config.num_hidden_layers
        self.modules = [Mtp(self.model, self.layers + k) for k in range(depth)]
        # The main decoder runs only the blocks before those of the MTP modules.
        self.all_layers = self.model.model.layers

    def store(self, folder):
        """Store the model in the released model's layout, including the modules' copies of the embedding and head."""
        self.model.config.num_hidden_layers += self.depth
        self.model.save_pretrained(folder)
        self.model.config.num_hidden_layers -= self.depth
        tensors = load_file(folder / "model.safetensors")
        embedding = tensors["model.embed_tokens.weight"]
        for k, module in enumerate(self.modules):
            base = f"model.layers.{self.layers + k}."
            tensors |= {base + key: value.detach().clone() for key, value in module.own.items()}
            tensors[base + "embed_tokens.weight"] = embedding.clone()
            tensors[base + "shared_head.head.weight"] = tensors.get("lm_head.weight", embedding).clone()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        config |= {"num_hidden_layers": self.layers, "num_nextn_predict_layers": self.depth}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def hidden_states(self, rows, source, concat):
        """Return the hidden states of the main model and of each module, as passed to the head."""
        raw, normed = oracle.decoder(self.model, rows)
        ready, fed = [normed], normed if source == "normed" else raw
        for k, module in enumerate(self.modules):
            ahead = torch.zeros_like(rows.inputs)  # zeros after the row's end, where tokens are unknown and unused
            known = rows.tokens[:, k + 1:][:, :LENGTH]
            ahead[:, :known.shape[1]] = known
            raw, normed = module.forward(ahead, fed, rows, concat)
            ready.append(normed)
            fed = normed if source == "normed" else raw
        return ready

    def losses(self, rows, source, concat, denominator):
        """Return (main loss, mean loss of the modules, their weighted sum)."""
        ready = self.hidden_states(rows, source, concat)
        main_targets = rows.targets(1)
        count = (main_targets >= 0).sum()
        main = oracle.cross_entropy_sum(self.model.lm_head(ready[0]), main_targets) / count
        further = 0
        for k in range(1, self.depth + 1):
            targets = rows.targets(k + 1)
            divisor = count if denominator == "main" else (targets >= 0).sum()
            further = further + oracle.cross_entropy_sum(self.model.lm_head(ready[k]), targets) / divisor / self.depth
        return main, further, main + WEIGHT * further

    def gradients(self):
        found = oracle.gradients(self.model)
        for k, module in enumerate(self.modules):
            found |= {f"model.layers.{self.layers + k}.{key}": value.grad for key, value in module.own.items()}
        return found

    def zero_grad(self):
        self.model.zero_grad()
        for module in self.modules:
            for parameter in module.own.values():
                parameter.grad = None


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    driver = oracle.Driver(tmp_path_factory.mktemp("driver"))
    yield driver
    driver.close()


@pytest.fixture(scope="module", params=[("v3", 1), ("v3", 2), ("plain_query_half_tied", 2), ("all_dense", 1), ("yarn", 2)],
                ids=lambda case: f"{case[0]}-{case[1]}")
def case(request, tmp_path_factory):
    """Return (name, oracle, folder of the stored model)."""
    oracle_model = Oracle(*request.param)
    return request.param[0], oracle_model, oracle_model.store(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("documents, source, concat, denominator",
                         [("packed", *which) for which in CONVENTIONS]
                         + [("one_a_row", *which) for which in (CONVENTIONS[0], CONVENTIONS[-1])])
def test_loss_and_gradients(case, driver, worst, documents, source, concat, denominator):
    name, oracle_model, folder = case
    rows = oracle.make_rows(name, ROWS, LENGTH, padding=4)
    if documents == "one_a_row":
        rows = oracle.Rows(rows.tokens, torch.arange(ROWS)[:, None].expand(-1, LENGTH + 1).contiguous())
    settings = [f"model.mtp.input={source}", f"model.mtp.concat={concat}", f"model.mtp.denominator={denominator}",
                f"model.mtp.weight={WEIGHT}"]
    if oracle.gates(oracle_model.model):
        settings.append("model.feed_forward.1.balance_alpha=0")
    ours = driver.run(folder, "deepseek_v3", rows, settings, micro_batch=3)

    oracle_model.zero_grad()
    main, further, total = oracle_model.losses(rows, source, concat, denominator)
    total.backward()
    for key, expected in (("main", main), ("mtp", further), ("total", total)):
        assert worst("losses", oracle.relative(ours["loss/" + key], expected.detach()), f"{name} {key}") < 1e-5
    gradients = oracle_model.gradients()
    assert {key.removeprefix("grad/") for key in ours if key.startswith("grad/")} == set(gradients)
    for key, expected in gradients.items():
        assert worst("gradients", oracle.relative(ours["grad/" + key], expected), f"{name}: {key}") < 1e-3, key


def test_conventions_differ(case):
    """Each convention changes the loss, so the comparisons can tell them apart."""
    name, oracle_model, _ = case
    rows = oracle.make_rows(name, ROWS, LENGTH, padding=4)
    with torch.no_grad():
        found = [float(oracle_model.losses(rows, *which)[1]) for which in CONVENTIONS]
    assert all(abs(a - b) > 1e-5 * a for a, b in itertools.combinations(found, 2)), found


def test_experts_of_modules_are_balanced(driver, tmp_path):
    """The modules' routers count tokens and update their biases like those of the layers."""
    oracle_model = Oracle("v3", 2)
    rows = oracle.make_rows("v3", ROWS, LENGTH)
    ours = driver.run(oracle_model.store(tmp_path), "deepseek_v3", rows)
    with oracle.Routers(oracle.gates(oracle_model.model)) as routers:
        oracle_model.losses(rows, "normed", "embedding_first", "main")
    layers = range(oracle_model.layers - len(oracle.gates(oracle_model.model)) + oracle_model.depth, oracle_model.layers + oracle_model.depth)
    assert len(layers) == len(routers.choices) == 4
    for layer, gate, theirs in zip(layers, oracle.gates(oracle_model.model), routers.chosen()):
        assert torch.equal(ours[f"choices/{layer}"], theirs)
        expected = gate.e_score_correction_bias + oracle.bias_change(theirs.sum(0))
        assert torch.allclose(ours[f"after/model.layers.{layer}.mlp.gate.e_score_correction_bias"], expected, rtol=0, atol=1e-6)


def test_logits(case, worst, tmp_path):
    """`dsv3 logits` writes the modules' logits, and NaN where a module's input is past the end of the row."""
    name, oracle_model, folder = case
    rows = oracle.make_rows(name, 2, LENGTH)
    rows = oracle.Rows(rows.tokens, torch.zeros_like(rows.tokens))
    (tmp_path / "tokens.json").write_text(json.dumps(rows.inputs.tolist()))
    oracle.program("dsv3", "logits", folder, "--tokens", tmp_path / "tokens.json", "--output", tmp_path / "out")
    ours = load_file(tmp_path / "out")
    with torch.no_grad():
        expected = [oracle_model.model.lm_head(x) for x in oracle_model.hidden_states(rows, "normed", "embedding_first")]
    assert worst("logits", oracle.largest(ours["logits"], expected[0]), name) < 1e-4
    for k in range(oracle_model.depth):
        known = LENGTH - k - 1
        assert worst("MTP logits", oracle.largest(ours["mtp_logits"][k][:, :known], expected[k + 1][:, :known]), name) < 1e-4
        assert torch.isnan(ours["mtp_logits"][k][:, known:]).all()
