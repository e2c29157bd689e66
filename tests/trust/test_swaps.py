"""Tests that a swap changes only the component it names, and that comparisons name every difference."""

import json
import subprocess

import pytest
import yaml

from support import BUILD, dsv3_run, make_tiny

SHORT = ("train.steps=3", "schedule.warmup=0", "validation.every=0", "checkpoint.every=0")


@pytest.fixture
def folder(tmp_path):
    make_tiny(tmp_path)
    return tmp_path


def changed(folder, *replacements, name="a.yaml"):
    """Write tiny.yaml with the replacements to `name`."""
    text = (folder / "tiny.yaml").read_text()
    for before, after in replacements:
        assert before in text
        text = text.replace(before, after, 1)
    (folder / name).write_text(text)
    return name


def config(folder, *arguments):
    return yaml.safe_load(dsv3_run(*arguments, "--print-config", cwd=folder).stdout)


def notes(folder, *arguments):
    return [line for line in dsv3_run(*arguments, "--check", "--config-only", cwd=folder).stdout.splitlines() if line.startswith("note: ")]


def compare(folder, *arguments):
    done = subprocess.run([BUILD / "bin/dsv3", "compare", *arguments], cwd=folder, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def factors(folder, a, b):
    [comparison] = compare(folder, a, b, "--json")["comparisons"]
    return sorted(comparison["factors"])


# The experiment's change, the swap, the swapped component, and which of its options carry over and which are dropped.
SWAPS = [
    (("position: {plugin: rope}", "position: {plugin: rope, theta: 5000, layout: half}"), "position={plugin: yarn, factor: 2, original_length: 64}",
     "model.position", {"theta": 5000, "layout": "half"}, []),
    (("{plugin: cosine, warmup: 5}", "{plugin: wsd, warmup: 4, min_ratio: 0.2, decay: 0.3}"), "schedule=cosine", "schedule",
     {"warmup": 4, "min_ratio": 0.2}, ["decay"]),
    (("{plugin: cosine, warmup: 5}", "{plugin: cosine, warmup: 3, min_ratio: 0.2}"), "schedule=constant", "schedule", {"warmup": 3}, ["min_ratio"]),
    (("attention: {plugin: mla, heads: 2, q_lora_rank: 16, kv_lora_rank: 16, qk_nope_dim: 8, qk_rope_dim: 8, v_dim: 16}",
      "attention: {plugin: mha, heads: 4, head_dim: 8, kv_heads: 2}"), "attention=mla", "model.attention", {"heads": 4}, ["head_dim", "kv_heads"]),
]


def at(tree, path):
    for part in path.split("."):
        tree = tree[part]
    return tree


@pytest.mark.promise("shared-options")
@pytest.mark.promise("swap-notes")
@pytest.mark.parametrize("change, swap, path, carried, dropped", SWAPS, ids=lambda value: value if isinstance(value, str) and "=" in value else "")
def test_only_shared_options_carry_over(folder, change, swap, path, carried, dropped):
    file = changed(folder, change)
    before, after = config(folder, file), config(folder, file, swap)
    component = at(after, path)
    assert {key: component[key] for key in carried} == carried
    assert not set(dropped) & set(component)
    outer, last = path.rpartition(".")[::2]
    for tree in (before, after):
        del (at(tree, outer) if outer else tree)[last]
    assert before == after  # nothing else has changed
    printed = " ".join(notes(folder, file, swap))
    assert all(f" {key} ({file}:" in printed for key in dropped) and not any(f" {key} (" in printed for key in carried), printed


@pytest.mark.promise("shared-options")
@pytest.mark.parametrize("swap, plugin", [("{plugin: muon}", "muon"), ("{plugin: adamw}", "adamw")])
def test_equal_names_do_not_share_a_meaning(folder, swap, plugin):
    other = {"muon": "adamw", "adamw": "muon"}[plugin]
    original = (folder / "tiny.yaml").read_text()
    groups = original[original.index("  - {role: [embedding"):original.index("schedule:")]
    file = changed(folder, ("optimizer:\n" + groups, f"optimizer: {{plugin: {other}, lr: 0.0123, weight_decay: 0.77}}\n"))
    new = config(folder, file, f"optimizer={swap}")["optimizer"]
    assert (new["lr"], new["weight_decay"]) == ({"muon": 0.02, "adamw": 3e-4}[plugin], 0.1)
    if plugin == "adamw":  # muon alone cannot train the vectors
        printed = " ".join(notes(folder, file, f"optimizer={swap}"))
        assert "lr (a.yaml:" in printed and "weight_decay (a.yaml:" in printed, printed


@pytest.mark.promise("kept-groups")
@pytest.mark.parametrize("lr, decay", [(0.004, 0.3), (0.02, 0.0)])
def test_a_group_that_keeps_its_plugin_keeps_its_options(folder, lr, decay):
    original = (folder / "tiny.yaml").read_text()
    groups = original[original.index("  - {role: [embedding"):original.index("schedule:")]
    file = changed(folder, ("optimizer:\n" + groups, f"optimizer: {{plugin: adamw, lr: {lr}, weight_decay: {decay}, beta2: 0.98}}\n"))
    vectors, matrices = config(folder, file, "optimizer=muon")["optimizer"]
    assert (vectors["lr"], vectors["weight_decay"], vectors["beta2"]) == (lr, decay, 0.98)
    assert (matrices["lr"], matrices["weight_decay"]) == (0.02, 0.1) and "beta2" not in matrices


@pytest.mark.promise("kept-groups")
def test_a_group_that_keeps_its_plugin_keeps_its_options_in_the_other_direction(folder):
    file = changed(folder, ("plugin: adamw, lr: 5.0e-3", "plugin: adamw, lr: 7.0e-3, beta1: 0.85"))
    group = config(folder, file, "optimizer={plugin: adamw, weight_decay: 0.05}")["optimizer"]
    assert (group["lr"], group["beta1"], group["weight_decay"]) == (7e-3, 0.85, 0.05)
    printed = " ".join(notes(folder, file, "optimizer=adamw"))
    assert "'muon' were dropped: lr (a.yaml:" in printed


@pytest.mark.promise("swap-notes")
@pytest.mark.parametrize("swap, words", [
    ("feed_forward=swiglu", ["model.feed_forward", "'moe'", "routed (", "top_k (", "shared (", "hidden ("]),
    ("attention={plugin: mha, heads: 2}", ["model.attention", "'mla'", "q_lora_rank (", "kv_lora_rank (", "v_dim ("]),
    ("train.tokens=4000", ["train.tokens", "replaces train.steps"]),
    ("data={plugin: synthetic}", ["data", "'text'", "path ("])])
def test_dropped_options_are_printed_and_logged(folder, swap, words):
    printed = " ".join(notes(folder, "tiny.yaml", swap))
    assert all(word in printed for word in words), printed


@pytest.mark.promise("swap-notes")
def test_dropped_options_are_in_the_log_of_the_run(folder):
    done = dsv3_run("tiny.yaml", "attention=mha", *SHORT, "--run_name", "new", cwd=folder)
    assert "q_lora_rank (tiny.yaml:" in done.stderr and "q_lora_rank (tiny.yaml:" in (folder / "runs/new/log.txt").read_text()


@pytest.mark.promise("compare-options")
@pytest.mark.parametrize("override, expected", [
    ("optimizer=[{role: matrix, plugin: muon}, {plugin: adamw, lr: 5.0e-3, beta1: 0.7, eps: 1.0e-6}]",
     ["optimizer (adamw + muon -> muon + adamw)", "optimizer.adamw.beta1", "optimizer.adamw.eps"]),
    ("optimizer={plugin: adamw, lr: 1.0e-3}", ["optimizer (adamw + muon -> adamw)", "optimizer.adamw.lr"]),
    ("feed_forward=[{layers: 0-1, plugin: swiglu, hidden: 48}, {layers: 2, plugin: moe, routed: 4, top_k: 1, shared: 1, hidden: 16}]",
     ["model.feed_forward (different layers or roles)", "model.feed_forward.moe.top_k", "model.feed_forward.swiglu.hidden"]),
    ("feed_forward={plugin: swiglu, hidden: 80}", ["model.feed_forward (swiglu + moe -> swiglu)", "model.feed_forward.swiglu.hidden"])])
def test_an_option_on_both_sides_is_a_factor(folder, override, expected):
    (folder / "b.yaml").write_text(dsv3_run("tiny.yaml", override, "--print-config", cwd=folder).stdout)
    assert factors(folder, "tiny.yaml", "b.yaml") == sorted(expected)


@pytest.mark.promise("compare-sizes")
@pytest.mark.parametrize("override, grows", [
    ("feed_forward.1.routed=8", ["parameters"]),  # as many are active
    ("model.hidden=64", ["parameters", "active_parameters", "flops_per_token"]),
    ("train.batch=8", ["tokens"]),
    ("feed_forward.1.top_k=2", [])])
def test_sizes_are_beside_the_factors(folder, override, grows):
    (folder / "b.yaml").write_text(dsv3_run("tiny.yaml", override, "--print-config", cwd=folder).stdout)
    groups = compare(folder, "tiny.yaml", "b.yaml", "--json")["groups"]
    first, last = groups[0], groups[-1]
    for key in ("parameters", "active_parameters", "flops_per_token", "tokens"):
        assert first[key] > 0
        # The router of more experts computes more.
        if key in grows:
            assert last[key] > first[key]
        elif not (override.startswith("feed_forward.1.routed") and key != "tokens"):
            assert last[key] == first[key], key
    if grows == ["parameters"]:
        assert last["parameters"] - first["parameters"] > 10 * (last["active_parameters"] - first["active_parameters"])
    table = compare(folder, "tiny.yaml", "b.yaml")
    assert all(title in table for title in ("parameters", "active", "FLOPs/token", "tokens")) or not grows


@pytest.mark.promise("compare-groups")
def test_any_number_of_files_form_groups(folder):
    names = []
    for i, (seed, heads) in enumerate([(1, 2), (1, 4), (2, 4), (2, 2), (3, 2), (3, 8)]):
        names.append(changed(folder, ("seed: 7", f"seed: {seed}"), ("heads: 2", f"heads: {heads}"), ("name: tiny", f"name: x{i}"), name=f"{i}.yaml"))
    result = compare(folder, *names, "--json")
    assert [group["items"] for group in result["groups"]] == [["0.yaml", "3.yaml", "4.yaml"], ["1.yaml", "2.yaml"], ["5.yaml"]]
    assert [group["seeds"] for group in result["groups"]] == [[1, 2, 3], [1, 2], [3]]
    assert [comparison["factors"] for comparison in result["comparisons"]] == [["model.attention.heads"]] * 2


@pytest.mark.promise("compare-groups")
def test_runs_and_files_form_groups_with_their_losses(folder):
    for seed in (3, 4, 5):
        dsv3_run("tiny.yaml", *SHORT, f"train.seed={seed}", "--run_name", f"s{seed}", cwd=folder)
    dsv3_run("tiny.yaml", *SHORT, "position=none", "train.seed=3", "--run_name", "none", cwd=folder)
    result = compare(folder, "runs/s3", "runs/none", "runs/s4", "runs/s5", "--json")
    a, b = result["groups"]
    assert a["items"] == ["runs/s3", "runs/s4", "runs/s5"] and b["items"] == ["runs/none"]
    assert a["metrics"]["train/loss"]["count"] == 3 and a["metrics"]["train/loss"]["sd"] > 0 and "sd" not in b["metrics"]["train/loss"]
    assert result["comparisons"][0]["verdict"] == "one factor: model.position (rope -> none)"
