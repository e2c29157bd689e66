"""Tests the experiment tools: flags, editor schema, comparison, value origins and shell completion."""

import csv
import functools
import io
import itertools
import json
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import tempfile
import time
import tomllib

import jsonschema
import pytest
import yaml

from support import BUILD, SOURCE, TINY, dsv3_run, make_tiny, metrics


def dsv3(*arguments, cwd=SOURCE, check=0):
    done = subprocess.run([BUILD / "bin/dsv3", *map(str, arguments)], cwd=cwd, text=True, capture_output=True, timeout=120)
    assert done.returncode == check, f"exit {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Yaml12(yaml.SafeLoader):
    """A PyYAML loader with YAML 1.2 scalars, as in editors: 1e9 is a number and yes is a string."""


Yaml12.yaml_implicit_resolvers = {}
Yaml12.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|)$"), ["~", "n", ""])
Yaml12.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
Yaml12.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
Yaml12.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
                             list("-+.0123456789"))


@pytest.fixture(scope="session")
def validator():
    schema = json.loads(dsv3("schema"))
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_flags_accept_dashes_and_underscores(tmp_path):
    make_tiny(tmp_path)
    checked = dsv3_run("tiny.yaml", "--check", "--run-name", "a_b", "--plugin_path=" + str(BUILD), cwd=tmp_path).stdout
    assert checked == dsv3_run("tiny.yaml", "--check", "--run_name=a_b", "--plugin-path", BUILD, cwd=tmp_path).stdout
    assert "fits" in dsv3_run("tiny.yaml", "--dry_run", "--gpu_memory", "8G", cwd=tmp_path).stdout
    estimate = dsv3_run("tiny.yaml", "--dry-run", "--gpu-memory", "8G", cwd=tmp_path).stdout
    assert "fits" in estimate
    # Underscores in values are not changed.
    unknown = dsv3_run("--run-id", "no_such_run", cwd=tmp_path, check=2).stderr
    assert unknown == dsv3_run("--run_id", "no_such_run", cwd=tmp_path, check=2).stderr and "no_such_run" in unknown
    assert "schedule/cosine" in dsv3("plugins", "list", "--plugin_path", BUILD)


def test_out_is_answered_with_output(tmp_path):
    for words in (["logits", "runs/a", "--tokens", "ids.json", "--out", "a"], ["data", "prepare", "a.txt", "--out", "a"]):
        done = subprocess.run([BUILD / "bin/dsv3", *words], cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 2 and "unknown flag --out; did you mean --output?" in done.stderr, done.stderr


def test_version():
    ran = subprocess.run([BUILD / "bin/dsv3-run", "--version"], text=True, capture_output=True, check=True).stdout
    assert ran == dsv3("--version")
    assert re.fullmatch(r"dsv3 \d+\.\d+\.\d+( \([0-9a-f]{12}\))?\nSDK +[\d.]+, headers [0-9a-f]{16}\nLibTorch [\d.]+\nCompiler .+\n", ran), ran


def complaints(validator, text):
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(yaml.load(text, Yaml12))]


def test_shipped_experiments_fit_the_schema(validator):
    partial = jsonschema.Draft7Validator(json.loads(dsv3("schema", "--partial")))
    files = list((SOURCE / "experiments").rglob("*.yaml"))
    assert len(files) > 10
    for file in files:
        is_preset = file.parent.name == "conventions"
        assert complaints(partial if is_preset else validator, file.read_text()) == [], file


# Replacements in TINY: (old text, new text).
RIGHT = [
    ("heads: 2", "heads: 2.0e0"), ("heads: 2", "heads: '${train.batch}'"), ("steps: 30", "tokens: 1e4"),
    ("{plugin: rope}", "rope"), ("tracker: [{plugin: csv}]", "tracker: csv"), ("tracker: [{plugin: csv}]", "tracker: [csv]"),
    ("tracker: [{plugin: csv}]", "tracker:"), ("layers: 0,", "layers: 0-0,"), ("role: matrix", "role: [matrix]"),
    ("role: matrix", "match: .*"), ("threads: 1", "threads: auto"), ("name: tiny", "name: 2024"),
    ("samples: {every: 0}", "samples:"), ("samples: {every: 0}", "samples: {prompts: [a, 1]}"),
    ("samples: {every: 0}", "hub: {endpoint: 'http://localhost'}"),
]
WRONG = [
    ("heads: 2", "heads: 0"), ("heads: 2", "heads: two"), ("heads: 2", "heads: 1.5"), ("heads: 2", "heads: '2'"),
    ("heads: 2", "heads: [2]"), ("heads: 2", "heds: 2"), ("heads: 2", "kv_heads: 2"), ("plugin: mla", "plugin: mlaa"),
    ("plugin: mla, ", ""), ("{plugin: rope}", "ropes"), ("{plugin: rope}", "[rope]"), ("{plugin: rope}", ""),
    ("layers: 0,", "layers: first,"), ("layers: 0,", "layers: -1,"), ("role: matrix", "role: matrices"),
    ("role: matrix", "role: []"), ("role: matrix", "role: [matrix, matrix]"), ("plugin: muon", "plugin: cosine"),
    ("optimizer:\n", "optimisers:\n"), ("steps: 30", "tokens: 9, steps: 30"), ("steps: 30, ", ""),
    ("precision: fp32", "precision: fp64"), ("threads: 1", "threads: all"), ("share: 0.1", "share: 1.5"),
    ("dsv3: 1\n", ""), ("dsv3: 1\n", "dsv3: 2\n"), ("{plugin: bytes}", "{plugin: bpe}"), ("{every: 0}", "{every: -1}"),
    ("{every: 0}", "{prompts: text}"), ("strategy: {plugin: single}\n", ""), ("name: tiny", "name: a/b"),
    ("{plugin: rope}", "{plugin: rope, layout: quarter}"), ("mtp: {depth: 1,", "mtp: {depth: 101,"),
    ("name: tiny", "plugin_paths: [x]"), ("plugin: csv}]", "plugin: csv}, 3]"), ("model:\n", "model: x\nmodels:\n"),
]


@pytest.mark.parametrize("invalid,change", [(False, c) for c in RIGHT] + [(True, c) for c in WRONG],
                         ids=lambda v: v[1].strip() if isinstance(v, tuple) else str(v))
def test_the_schema_agrees_with_the_checker(validator, tmp_path, invalid, change):
    assert change[0] in TINY
    text = TINY.replace(*change, 1)
    (tmp_path / "a.yaml").write_text(text)
    checked = dsv3_run("a.yaml", "--check", "--config-only", cwd=tmp_path, check=None)
    assert (checked.returncode == 2) == invalid, checked.stderr
    assert bool(complaints(validator, text)) == invalid, complaints(validator, text)


def test_a_file_that_extends_another_may_omit_keys(validator):
    assert complaints(validator, "dsv3: 1\nextends: [b.yaml]\nmodel: {attention: {heads: 8}}\noptimizer: {0: {lr: 1e-3}}") == []
    assert complaints(validator, "dsv3: 1\nextends: [b.yaml]\nmodel: {attention: {headz: 8}}") != []
    assert complaints(validator, "dsv3: 1\nextends: [b.yaml]\noptimizer: {0: {lr: fast}}") != []
    assert complaints(validator, "model: {hidden: 8}") != []


def test_schema_options(tmp_path):
    dsv3("schema", "--partial", "--output", tmp_path / "s.json")
    partial = jsonschema.Draft7Validator(json.loads((tmp_path / "s.json").read_text()))
    assert complaints(partial, "model: {hidden: 8}") == []
    assert complaints(partial, "model: {hidden: 0}") != []
    heads = json.loads(dsv3("schema"))["definitions"]["attention.mla"]["properties"]["heads"]
    assert heads["default"] > 0 and heads["description"]


def compared(folder, *changes, a="tiny.yaml"):
    text = (folder / "tiny.yaml").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after, 1)
    (folder / "b.yaml").write_text(text)
    return json.loads(dsv3("compare", a, "b.yaml", "--json", cwd=folder))["comparisons"][0]


MLA = "{plugin: mla, heads: 2, q_lora_rank: 16, kv_lora_rank: 16, qk_nope_dim: 8, qk_rope_dim: 8, v_dim: 16}"


@pytest.mark.parametrize("changes,factors", [
    ([], []),
    ([("name: tiny", "name: other"), ("seed: 7", "seed: 8"), ("tracker: [{plugin: csv}]", "tracker:")], []),
    ([(MLA, "{plugin: mha, heads: 2, head_dim: 16}")], ["model.attention (mla -> mha)"]),
    ([("q_lora_rank: 16", "q_lora_rank: 0")], ["model.attention.q_lora_rank"]),
    ([("{plugin: text, path: text.txt, tokenizer: {plugin: bytes}}", "{plugin: synthetic}")], ["data (text -> synthetic)"]),
    ([("layers: 0,", "layers: 0-1,"), ("layers: 1-,", "layers: 2-,")], ["model.feed_forward (different layers or roles)"]),
    ([("steps: 30", "tokens: 5760")], ["train.steps or train.tokens"]),
    ([("lr: 0.02", "lr: 0.03"), ("warmup: 5", "warmup: 6")], ["optimizer.1.lr", "schedule.warmup"]),
    ([("share: 0.1", "share: 0.2")], ["validation.share"]),
], ids=str)
def test_factors(tmp_path, changes, factors):
    make_tiny(tmp_path)
    found = compared(tmp_path, *changes)
    assert found["factors"] == factors
    assert found["one_factor"] == (len(factors) == 1)
    assert bool(found["differences"]) == bool(changes)


def test_comparison_of_runs_names_origins_and_losses(tmp_path):
    make_tiny(tmp_path)
    for name, override in ("a", "train.seed=7"), ("b", "attention=mha"):
        dsv3_run("tiny.yaml", "train.steps=3", "schedule.warmup=0", override, "--run_name", name, cwd=tmp_path)
    result = json.loads(dsv3("compare", "runs/a", "runs/b", "--json", cwd=tmp_path))
    [found] = result["comparisons"]
    assert found["factors"] == ["model.attention (mla -> mha)"]
    a, b = result["groups"]
    assert a["metrics"]["val/loss"]["mean"] != b["metrics"]["val/loss"]["mean"]
    assert a["parameters"] != b["parameters"] and a["tokens"] == b["tokens"] > 0
    plugin = next(d for d in found["differences"] if d["key"] == "model.attention.plugin")
    assert plugin["b"]["value"] == "mha" and plugin["b"]["origin"].startswith("runs/b/config.yaml:")
    table = dsv3("compare", "runs/a", "runs/b", cwd=tmp_path)
    assert "one factor: model.attention (mla -> mha)" in table and "last val/loss" in table
    dsv3("compare", "runs/a", "runs/none", cwd=tmp_path, check=2)


def test_runs_that_differ_only_in_their_seeds_form_a_group(tmp_path):
    make_tiny(tmp_path)
    small = ("train.steps=3", "schedule.warmup=0", "validation.every=0")
    losses = []
    for name, *overrides in (("a1", "train.seed=1"), ("b1", "attention=mha", "train.seed=1"), ("a2", "train.seed=2")):
        dsv3_run("tiny.yaml", *small, *overrides, "--run_name", name, cwd=tmp_path)
        losses.append(metrics(tmp_path / "runs" / name)[3]["val/loss"])
    result = json.loads(dsv3("compare", "runs/a1", "runs/b1", "runs/a2", "--json", cwd=tmp_path))
    a, b = result["groups"]
    assert (a["items"], a["seeds"], b["items"]) == (["runs/a1", "runs/a2"], [1, 2], ["runs/b1"])
    assert a["metrics"]["val/loss"]["mean"] == pytest.approx((losses[0] + losses[2]) / 2)
    assert a["metrics"]["val/loss"]["sd"] == pytest.approx(abs(losses[0] - losses[2]) / 2 ** 0.5)
    assert [c["factors"] for c in result["comparisons"]] == [["model.attention (mla -> mha)"]]
    table = dsv3("compare", "runs/a1", "runs/b1", "runs/a2", cwd=tmp_path)
    assert "one factor: model.attention (mla -> mha)" in table and "+-" in table and "FLOPs/token" in table


def test_the_formats_of_a_comparison_agree(tmp_path):
    make_tiny(tmp_path)
    small = ("train.steps=3", "schedule.warmup=0", "validation.every=1")
    for name, *overrides in (("a1", "train.seed=1"), ("b1", "attention=mha", "train.seed=1"), ("a2", "train.seed=2")):
        dsv3_run("tiny.yaml", *small, *overrides, "--run_name", name, cwd=tmp_path)
    runs = ["runs/a1", "runs/b1", "runs/a2"]
    text, markdown, table, result = (dsv3("compare", *runs, "--format", form, cwd=tmp_path)
                                     for form in ("text", "markdown", "csv", "json"))
    assert text == dsv3("compare", *runs, cwd=tmp_path)
    assert result == dsv3("compare", *runs, "--json", cwd=tmp_path)
    dsv3("compare", *runs, "--json", "--format", "csv", cwd=tmp_path, check=2)
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [(row["group"], row["experiment"], row["seed"]) for row in rows] == [
        ("A", "runs/a1", "1"), ("A", "runs/a2", "2"), ("B", "runs/b1", "1")]
    for row in rows:
        losses = [row["val/loss"] for row in metrics(tmp_path / row["experiment"]).values() if "val/loss" in row]
        assert float(row["last val/loss"]) == losses[-1] and float(row["best val/loss"]) == min(losses)
    assert [row["model.attention.plugin"] for row in rows] == ["mla", "mla", "mha"]
    a = json.loads(result)["groups"][0]
    assert a["best"]["val/loss"]["mean"] == pytest.approx(sum(float(row["best val/loss"]) for row in rows[:2]) / 2)
    lines = markdown.splitlines()
    assert "| A | runs/a2 |" in lines and "**one factor: model.attention (mla -> mha)**" in markdown
    assert all(line.count("|") == 6 for line in lines if line.startswith("| model."))


# Options that plugins need in the tiny experiment.
OPTIONS = {"attention/mla": MLA, "attention/mha": "{plugin: mha, heads: 2}", "data/text": "{plugin: text, path: text.txt}",
           "data/tokens": "{plugin: tokens, path: text.txt}", "tokenizer/bpe": "{plugin: bpe, file: text.txt}",
           "position/yarn": "{plugin: yarn, factor: 2, original_length: 64}"}
PATHS = {"attention": "model.attention", "position": "model.position", "feed_forward": "model.feed_forward", "tokenizer": "data.tokenizer"}


def resolved(folder, name, file, *overrides):
    """Write the resolved experiment to NAME.yaml."""
    (folder / f"{name}.yaml").write_text(dsv3_run(file, *overrides, "--print-config", cwd=folder).stdout)


def options(experiment, path, named):
    """Return the value of every key by its path. With `named`, components at `path` are named by their plugins, not by their index."""
    flat = {}

    def add(value, key):
        if isinstance(value, dict):
            for name, item in value.items():
                add(item, f"{key}.{name}" if key else name)
        elif key == path and isinstance(value, list) and isinstance(value[0], dict):
            for item in value:
                add(item, f"{key}.{item['plugin']}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for i, item in enumerate(value):
                add(item, f"{key}.{i}")
        else:
            flat[key] = value

    add(experiment, "")
    if not named:
        return flat
    plugin = flat.get(f"{path}.plugin")  # a single component
    return {key.replace(f"{path}.", f"{path}.{plugin}.", 1) if plugin else key: value for key, value in flat.items()}


def check_swap(folder, path, before, after):
    """Check that the comparison after the swap names exactly the options that differ. Return its factors."""
    resolved(folder, "a", "tiny.yaml", f"{path}={before}")
    resolved(folder, "b", "a.yaml", f"{path}={after}")
    [found] = json.loads(dsv3("compare", "a.yaml", "b.yaml", "--json", cwd=folder))["comparisons"]
    experiments = [yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in "ab"]
    slots = [functools.reduce(dict.__getitem__, path.split("."), experiment) for experiment in experiments]
    a, b = (options(experiment, path, any(isinstance(slot, list) for slot in slots)) for experiment in experiments)
    differing = {key for key in a.keys() | b.keys() if a.get(key, "absent") != b.get(key, "absent")}
    assert {d["key"] for d in found["differences"]} == differing, (path, before, after)
    assert all(key.startswith(path) for key in differing)
    both = {key for key in differing if a.get(f"{key.rpartition('.')[0]}.plugin") == b.get(f"{key.rpartition('.')[0]}.plugin")}
    choices = {key for key in both if key.endswith((".role", ".match", ".layers", ".name"))}
    assert {f for f in found["factors"] if f.startswith(f"{path}.")} == both - choices, (path, before, after)
    return found["factors"]


def plugins_by_kind():
    plugins = {}
    for component in json.loads(dsv3("plugins", "list", "--json")):
        plugins.setdefault(component["kind"], []).append(component["name"])
    return plugins


def test_a_swap_of_any_two_plugins_is_one_factor(tmp_path):
    make_tiny(tmp_path)
    pairs = [(kind, *pair) for kind, names in plugins_by_kind().items() if kind not in ("tracker", "callback", "format")
             for pair in itertools.permutations(names, 2)]
    assert len(pairs) > 15
    for kind, before, after in pairs:
        path = PATHS.get(kind, kind)
        first, second = (OPTIONS.get(f"{kind}/{name}", f"{{plugin: {name}}}") for name in (before, after))
        assert check_swap(tmp_path, path, first, second) == [f"{path} ({before} -> {after})"], (kind, before, after)


def test_a_swap_with_any_alias_names_the_options_that_differ(tmp_path):
    make_tiny(tmp_path)
    aliases = [a for file in (SOURCE / "registries").glob("*.toml*") for a in tomllib.loads(file.read_text()).get("alias", [])]
    assert aliases
    for kind, name in {(alias["kind"], alias["name"]) for alias in aliases}:
        path = PATHS.get(kind, kind)
        for plugin in plugins_by_kind()[kind]:
            explicit = OPTIONS.get(f"{kind}/{plugin}", f"{{plugin: {plugin}, lr: 0.0123}}" if kind == "optimizer" else f"{{plugin: {plugin}}}")
            for pair in itertools.permutations([explicit, name]):
                swaps = [factor for factor in check_swap(tmp_path, path, *pair) if not factor.startswith(f"{path}.")]
                assert len(swaps) == 1 and swaps[0].startswith(f"{path} ("), (name, pair, swaps)


@pytest.mark.parametrize("override, factors", [
    ("optimizer=muon", ["optimizer (adamw -> adamw + muon)"]),
    ("optimizer=[{role: matrix, plugin: muon}, {plugin: adamw, lr: 3.0e-4}]", ["optimizer.adamw.lr", "optimizer (adamw -> muon + adamw)"]),
    ("optimizer={plugin: adamw, beta2: 0.9}", ["optimizer.beta2"]),
])
def test_options_of_a_plugin_on_both_sides_are_factors(tmp_path, override, factors):
    make_tiny(tmp_path)
    resolved(tmp_path, "a", "tiny.yaml", "optimizer={plugin: adamw, lr: 5.0e-3}")
    resolved(tmp_path, "b", "a.yaml", override)
    [found] = json.loads(dsv3("compare", "a.yaml", "b.yaml", "--json", cwd=tmp_path))["comparisons"]
    assert sorted(found["factors"]) == sorted(factors)


def test_print_config_names_every_layer(tmp_path):
    make_tiny(tmp_path)
    (tmp_path / "config.yaml").write_text("log: {level: warning}\n")
    (tmp_path / "top.yaml").write_text("dsv3: 1\nextends: tiny.yaml\ntrain: {clip: 0.5}\n")
    out = dsv3_run("top.yaml", "train.seed=3", "attention=mha", "--print-config", cwd=tmp_path).stdout
    for line in ("  level: warning  # ./config.yaml:1:14", "  hidden: 32  # tiny.yaml:4:11", "  clip: 0.5  # top.yaml:3:15",
                 "  seed: 3  # command line: train.seed=3", "    plugin: mha  # command line: attention=mha",
                 "  recompute: none  # default"):
        assert line in out.splitlines(), line
    assert all("  # " in line or line.endswith(":") or line.endswith("-") for line in out.splitlines()[1:])


def with_conventions(folder, preset):
    """Write an experiment that extends tiny.yaml and a conventions preset."""
    file = folder / f"{preset}.yaml"
    file.write_text(f"dsv3: 1\nextends: [tiny.yaml, {SOURCE}/experiments/conventions/{preset}.yaml]\n")
    return file.name


def test_print_config_names_the_preset_of_a_convention(tmp_path):
    make_tiny(tmp_path)
    out = dsv3_run(with_conventions(tmp_path, "torchtitan"), "feed_forward.1.bias_update=sign", "--print-config", cwd=tmp_path).stdout
    lines = [re.sub(r"# .*/conventions/", "# ", line.strip()) for line in out.splitlines()]
    for line in ("muon_split: per_head  # torchtitan.yaml:5:29", "input: raw  # torchtitan.yaml:4:20",
                 "bias_update: sign  # command line: feed_forward.1.bias_update=sign", "nesterov: true  # default"):
        assert line in lines, line


def test_conventions_go_into_checkpoints_and_comparisons(tmp_path):
    make_tiny(tmp_path)
    megatron = with_conventions(tmp_path, "megatron")
    for run, file in (("deepseek", "tiny.yaml"), ("megatron", megatron)):
        dsv3_run(file, "train.steps=1", "schedule.warmup=0", "validation.every=0", "--run_name", run, cwd=tmp_path)
    manifest = json.loads((tmp_path / "runs/megatron/checkpoints/step-1/manifest.json").read_text())
    conventions = manifest["state"]["conventions"]
    assert conventions["optimizer.muon.nesterov"] == "false" and conventions["optimizer.muon.scale"] == "spectral"
    [found] = json.loads(dsv3("compare", "runs/deepseek", "runs/megatron", "--json", cwd=tmp_path))["comparisons"]
    assert found["verdict"] == "3 factors: model.mtp.denominator, optimizer.1.nesterov, optimizer.1.scale"
    # Weights can be reused with a different optimizer, or with the conventions that they were trained with.
    dsv3_run("tiny.yaml", "train.steps=1", "schedule.warmup=0", "optimizer=adamw", "--from", "runs/deepseek", "--run_name", "a", cwd=tmp_path)
    dsv3_run(megatron, "train.steps=1", "schedule.warmup=0", "--from", "runs/megatron", "--run_name", "b", cwd=tmp_path)


def completed_by_bash(line, cwd=SOURCE):
    """Return bash's completions for `line` with the cursor at its end."""
    words = line.split(" ")
    script = f"""eval "$(dsv3 completion bash)"
COMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDS=({" ".join(map(repr, words))}) COMP_CWORD={len(words) - 1}
_dsv3_complete
printf '%s\\n' "${{COMPREPLY[@]}}\""""
    path = {"PATH": f"{BUILD / 'bin'}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], cwd=cwd, env=path, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return sorted(filter(None, done.stdout.splitlines()))


def completed_by_fish(line, cwd=SOURCE):
    done = subprocess.run(["fish", "--no-config", "-c", f"dsv3 completion fish | source; complete -C {line!r}"], cwd=cwd, text=True,
                          env={"PATH": f"{BUILD / 'bin'}:/usr/bin:/bin", "HOME": "/nonexistent"}, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return sorted(offer.split("\t")[0].removesuffix("/") for offer in done.stdout.splitlines())


ZSHRC = """\
autoload -Uz compinit && compinit -u -d {folder}/dump
eval "$(dsv3 completion zsh)"
# Records what is offered to the line editor.
compadd() {{
  local -a offered
  builtin compadd -O offered "$@"
  (( $#offered )) && print -rl -- "$offered[@]" >> {folder}/offers
  builtin compadd "$@"
}}
finished() {{ : > {folder}/finished }}
zle -N finished
bindkey '^X' finished
: > {folder}/ready
"""


def completed_by_zsh(line, cwd=SOURCE):
    """Type the line and a tab into zsh, which completes only on a terminal."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / ".zshrc").write_text(ZSHRC.format(folder=folder))
        ours, its = pty.openpty()
        shell = subprocess.Popen(["zsh", "-i"], stdin=its, stdout=its, stderr=its, cwd=cwd, start_new_session=True,
                                 env={"PATH": f"{BUILD / 'bin'}:/usr/bin:/bin", "HOME": name, "ZDOTDIR": name, "TERM": "vt100"})
        os.close(its)
        try:
            read_until(ours, folder / "ready")
            os.write(ours, line.encode() + b"\t\x18")
            read_until(ours, folder / "finished")
        finally:
            shell.kill()
            shell.wait()
            os.close(ours)
        offers = folder / "offers"
        return sorted(set(offers.read_text().splitlines())) if offers.exists() else []


def read_until(terminal, file, seconds=60):
    """Read the shell's output until the file exists; otherwise the shell would block."""
    shown, end = b"", time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, shown
        if select.select([terminal], [], [], 0.05)[0]:
            shown += os.read(terminal, 65536)


LINES = [
    ("dsv3 plu", ["plugins"]),
    ("dsv3 plugins ", ["--help", "check", "describe", "list", "new"]),
    ("dsv3 plugins list --js", ["--json"]),
    ("dsv3 plugins describe attention/m", ["attention/mha", "attention/mla"]),
    ("dsv3 plugins new f", ["feed_forward", "format"]),
    ("dsv3 export runs/a out --format ", ["deepseek_v3", "llama"]),
    ("dsv3-run experiments/nano.yaml format=", []),
    ("dsv3-run experiments/nano.yaml model.recomp", ["model.recompute="]),
    ("dsv3 data prepare --documents ", ["blank_line", "file", "line"]),
    ("dsv3 compare experiments/nano_m", ["experiments/nano_mha.yaml", "experiments/nano_muon.yaml"]),
    ("dsv3-run experiments/quick", ["experiments/quickstart.yaml"]),
    ("dsv3-run --dry", ["--dry-run"]),
    ("dsv3-run --resume a", ["auto"]),
    ("dsv3-run experiments/nano.yaml train.se", ["train.seed=", "train.sequence="]),
    ("dsv3-run experiments/nano.yaml train.seed=3 model.attention.kv", ["model.attention.kv_lora_rank="]),
    ("dsv3-run experiments/nano.yaml attention=", ["attention=mha", "attention=mla"]),
    ("dsv3-run --output exper", ["experiments"]),
    ("dsv3-run --gpu", ["--gpu-memory"]),
    ("dsv3-run --gpu-memory ", []),
    ("dsv3-run --plugin-path exper", ["experiments"]),
]


@pytest.mark.parametrize("line,offers", LINES)
def test_bash_completes(line, offers):
    # Bash splits words at =.
    assert completed_by_bash(line) == [o.split("=")[1] if line.endswith("=") else o for o in offers]


@pytest.mark.parametrize("complete", [completed_by_bash, completed_by_zsh])
def test_values_are_completed_after_either_spelling_of_a_flag(complete):
    if complete is completed_by_zsh and shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    assert complete("dsv3-run --gpu_memory ") == complete("dsv3-run --run-id ") == []
    assert complete("dsv3-run --plugin_path exper") == ["experiments"]


@pytest.mark.parametrize("line,offers", LINES)
def test_zsh_completes(line, offers):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    # zsh completes paths folder by folder.
    found = [o for o in completed_by_zsh(line) if not ("/" in line.split(" ")[-1] and o == "experiments")]
    assert found == [pathlib.Path(o).name if (SOURCE / o).is_file() else o for o in offers]


@pytest.mark.parametrize("line,offers", LINES)
def test_fish_completes(line, offers):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    # fish offers flags only after a dash.
    assert completed_by_fish(line) == [o for o in offers if o[0] != "-" or line.split(" ")[-1].startswith("-")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_parse(shell):
    script = dsv3("completion", shell)
    assert "gpu-memory" in script and "prepare" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=script, text=True, check=True)
