"""Tests docs/model.md: its formulas match the programs' counts, and the files, functions, options and defaults that it
mentions exist."""

import re
import shlex

import pytest
import yaml

from support import SOURCE, dsv3_run

TEXT = (SOURCE / "docs/model.md").read_text()
BASES = sorted((SOURCE / "experiments/base").glob("*.yaml"))


def table(title):
    """Return the rows of the table whose header starts with `title`, as lists of cells."""
    lines = TEXT[TEXT.index(f"| {title} |"):].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def resolved(file):
    return yaml.safe_load(dsv3_run(file, "--print-config", cwd=SOURCE).stdout)


def options(tree, found=None):
    """Return the value for each "<plugin>.<option>" and for each dotted path in the resolved experiment."""
    found = {} if found is None else found

    def walk(node, path):
        if isinstance(node, dict):
            for key, value in node.items():
                if "plugin" in node:
                    found[f"{node['plugin']}.{key}"] = value
                walk(value, f"{path}.{key}" if path else key)
        elif isinstance(node, list):
            for item in node:
                walk(item, path)
        found[path] = node

    walk(tree, "")
    return found


def dense_layers(tree):
    count = 0
    entries = tree["model"]["feed_forward"]
    for entry in entries if isinstance(entries, list) else [entries]:
        if entry["plugin"] == "swiglu":
            first, _, last = str(entry["layers"]).partition("-")
            count += int(last or first) - int(first) + 1
    return count


def symbols(tree):
    known, values = options(tree), {}
    for names, keys, _ in table("symbol"):
        for name, key in zip(code(names), code(keys), strict=True):
            values[name] = dense_layers(tree) if name == "Ld" else known.get(key, 0)
    return values


def formulas(values):
    """Evaluate both tables of formulas. A row may use the results of the rows above it."""
    results = dict(values)
    for name, formula in [*table("part"), *table("FLOPs per token")]:
        results[name] = eval(code(formula)[0], {}, results)
    return results


def shown(text):
    """Return (value, half a unit in its last digit) for a string such as "1.23 M"."""
    number, unit = re.fullmatch(r"([\d.]+) ?([kKMGBT]?)", text).groups()
    factor = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}[unit]
    return float(number) * factor, 0.5000001 * factor * 10.0 ** -len(number.partition(".")[2])


@pytest.mark.parametrize("file", BASES, ids=lambda p: p.stem)
def test_formulas_match_the_dry_run(file, tmp_path):
    out = dsv3_run(file, "--dry-run", cwd=tmp_path).stdout
    expected = formulas(symbols(resolved(file)))
    parts = ("embedding", "attention", "feed_forward", "norms", "head", "mtp")
    for part in parts:
        total, active = re.search(rf"^  {part} +([\d.]+ ?[A-Za-z]?) +([\d.]+ ?[A-Za-z]?)$", out, re.M).groups()
        for text, value in ((total, expected[part]), (active, expected.get(f"{part}, active", expected[part]))):
            number, tolerance = shown(text)
            assert abs(number - value) <= tolerance, (part, text, value)
    everything = re.search(r"^  all .*\((\d+) / (\d+)\)$", out, re.M)
    assert int(everything[1]) == sum(expected[part] for part in parts)
    assert int(everything[2]) == sum(expected.get(f"{part}, active", expected[part]) for part in parts)
    all_keys, causal = re.search(r"FLOPs/token    ([\d.]+ \w?)FLOP forward and backward \(([\d.]+ \w?)FLOP with", out).groups()
    for text, value in ((all_keys, expected["matrices"] + expected["scores"]),
                        (causal, expected["matrices"] + expected["scores"] / 2)):
        number, tolerance = shown(text)
        assert abs(number - value) <= tolerance, (text, value)


def test_deepseek_v3_has_671_billion_parameters():
    values = {}
    for names, _, numbers in table("symbol"):
        numbers = [int(number.replace(",", "")) for number in numbers.split(", ")]
        values |= zip(code(names), numbers, strict=True)
    found = formulas(values | {"M": 0})
    total = sum(found[part] for part in ("embedding", "attention", "feed_forward", "norms", "head"))
    active = total - found["feed_forward"] + found["feed_forward, active"]
    assert f"{total / 1e9:.2f} B parameters, {active / 1e9:.2f} B active per token" in TEXT
    assert f"{total / 1e9:.2f}" == "671.03"


def test_the_cache_is_57_times_smaller():
    commands = re.search(r"```sh\n(.*?)```", TEXT, re.S)[1].splitlines()
    cached = []
    for words in map(shlex.split, commands):
        assert words[0] == "dsv3-run" and words[-1] == "--dry-run"
        out = dsv3_run(*words[1:], cwd=SOURCE).stdout
        values, size, layers, precision = re.search(
            r"^KV cache +(\d+) values per token and layer, (\d+) bytes per token in (\d+) layer\(s\) of (\w+)$", out, re.M).groups()
        assert int(size) == int(values) * int(layers) * {"bf16": 2, "fp32": 4}[precision]
        cached.append(int(values))
    assert cached == [576, 32768] and round(cached[1] / cached[0]) == 57
    assert "**57 times smaller** (32,768 / 576 = 56.9)" in TEXT
    assert "70,272 bytes per token instead of 3,997,696" in TEXT and (61 * 2 * 576, 61 * 2 * 32768) == (70272, 3997696)
    rows = {row[0]: (code(row[1])[0], row[2]) for row in table("| values per token and layer")}
    v3 = dict(H=128, W=128, C=512, R=64)
    assert {name: (f"{eval(formula, {}, v3):,}") for name, (formula, _) in rows.items()} == {k: v[1] for k, v in rows.items()}


def test_functions_exist():
    references = re.findall(r"((?:`[\w:]+`,\s+)*`[\w:]+`)\s+in\s+`([\w/]+\.\w+)`", TEXT)
    assert len(references) > 20
    for names, file in references:
        source = (SOURCE / file).read_text()
        for name in code(names):
            assert re.search(rf"\b{name.split('::')[-1]}\(", source), (name, file)
            if "::" in name:
                assert name.removeprefix("Model::Parts::") in source, (name, file)


def test_files_exist():
    files = [f for f in re.findall(r"[`\s]((?:core|plugins|experiments|docs|tests)/[\w/.]+\w)", TEXT)]
    assert len(files) > 20 and [f for f in files if not (SOURCE / f).exists()] == []


def test_options_and_their_defaults():
    known = options(resolved(SOURCE / "experiments/nano_muon.yaml"))
    named = re.findall(r"`((?:model|train|mla|moe|muon|rope|swiglu)\.[a-z_.]+)(?:: ([^`]+))?`", TEXT)
    assert len({key for key, _ in named}) > 25
    assert [key for key, _ in named if key not in known] == []
    defaults = [code(row[1])[0].split(": ") for row in table("rule") if row[1].startswith("`")]
    assert len(defaults) > 8
    as_number = lambda text: float(text) if re.fullmatch(r"[\d.e-]+", text) else text  # noqa: E731
    assert [(key, known[key]) for key, value in defaults if as_number(str(known[key])) != as_number(value)] == []
