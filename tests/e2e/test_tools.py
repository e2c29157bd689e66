"""The tools around experiments: the schema for editors, comparison, origins, completion."""

import json
import pathlib
import re
import shutil
import subprocess

import jsonschema
import pytest
import yaml

from support import BUILD, SOURCE, TINY, dsv3_run, make_tiny


def dsv3(*arguments, cwd=SOURCE, check=0):
    done = subprocess.run([BUILD / "bin/dsv3", *map(str, arguments)], cwd=cwd, text=True, capture_output=True, timeout=120)
    assert done.returncode == check, f"exit {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Yaml12(yaml.SafeLoader):
    """PyYAML with the scalars of YAML 1.2, which editors read: 1e9 is a number, yes is not."""


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


def complaints(validator, text):
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(yaml.load(text, Yaml12))]


def test_shipped_experiments_fit_the_schema(validator):
    files = list((SOURCE / "experiments").rglob("*.yaml"))
    assert len(files) > 10
    for file in files:
        assert complaints(validator, file.read_text()) == [], file


# (what is replaced in TINY, by what); right ones first.
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


@pytest.mark.parametrize("mistake,change", [(False, c) for c in RIGHT] + [(True, c) for c in WRONG],
                         ids=lambda v: v[1].strip() if isinstance(v, tuple) else str(v))
def test_the_schema_judges_as_the_checker_does(validator, tmp_path, mistake, change):
    assert change[0] in TINY
    text = TINY.replace(*change, 1)
    (tmp_path / "a.yaml").write_text(text)
    checked = dsv3_run("a.yaml", "--check", cwd=tmp_path, check=None)
    assert (checked.returncode == 2) == mistake, checked.stderr
    assert bool(complaints(validator, text)) == mistake, complaints(validator, text)


def test_a_file_that_extends_may_leave_things_out(validator):
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
