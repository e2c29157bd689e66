"""Every invalid input produces the expected exit code, an error message that names it, and no incomplete files.

DSV3_UPDATE_GOLDEN=1 rewrites the golden files; review the diff before committing it.
"""

import concurrent.futures
import os
import pathlib
import re
import subprocess

import pytest

import checkpoints, command_line, data, experiment_files, huggingface, machine, plugins  # noqa: E401, F401  (they fill CASES)
from harness import BUILD, CASES, experiment, missing_excerpts, run

FOLDER = pathlib.Path(__file__).resolve().parent / "golden"
UPDATE = os.environ.get("DSV3_UPDATE_GOLDEN") == "1"
AT_ONCE = 2  # number of cases run in parallel; each spends most of its time starting a program
NOISE = ("frame #", "c10::", "terminate called", "Traceback", "std::__", "what():")
FIRST_LINE = re.compile(r"(?:HH:MM:SS warning .*\n)*(?:missing or unusable inputs:\n)?(?:command line: |[^\s:]+(?::\d+:\d+)?: )?error: ")


@pytest.fixture(scope="session")
def outcomes(request, tmp_path_factory):
    """Run all selected cases in parallel. Yield {case name: future of the outcome}."""
    root = tmp_path_factory.mktemp("errors")
    names = [item.callspec.params["name"] for item in request.session.items if hasattr(item, "callspec")]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(run, CASES[name], root / name) for name in names if not CASES[name].needs()}


@pytest.mark.parametrize("name", CASES)
def test_error(name, outcomes):
    one = CASES[name]
    if reason := one.needs():
        pytest.skip(reason)
    outcome = outcomes[name].result()
    text = outcome.text(one.title)
    assert outcome.exit_code == one.exit_code, text
    assert not [noise for noise in NOISE if noise in text], text
    assert FIRST_LINE.match(outcome.stderr), text
    if one.is_golden:
        compare_with_golden(name, text)
        return
    missing = [phrase for phrase in one.phrases if phrase not in outcome.stderr]
    assert not missing, f"missing in stderr: {missing}\n{text}"
    assert not missing_excerpts(one, outcome.stderr), f"no excerpt of {missing_excerpts(one, outcome.stderr)}\n{text}"
    assert outcome.stdout == one.stdout, text
    assert tuple(outcome.left) == one.leaves, text


def compare_with_golden(name, text):
    golden = FOLDER / f"{name}.txt"
    if UPDATE:
        FOLDER.mkdir(exist_ok=True)
        golden.write_text(text)
    assert golden.exists(), f"{golden} does not exist; write it with DSV3_UPDATE_GOLDEN=1 and review it\n{text}"
    assert text == golden.read_text()


def test_every_golden_file_has_a_case():
    expected = {f"{name}.txt" for name, one in CASES.items() if one.is_golden}
    for stale in {path.name for path in FOLDER.glob("*")} - expected:
        assert UPDATE, f"{FOLDER / stale} belongs to no case: remove it, or run with DSV3_UPDATE_GOLDEN=1"
        (FOLDER / stale).unlink()
    assert len(CASES) >= 201, "cases have been removed; if this was intended, lower the expected number"


def test_print_config_shows_origins(tmp_path):
    """The origin of a value is a file, line and column, the override that set it, or `default`."""
    experiment(tmp_path)
    done = subprocess.run([BUILD / "bin/dsv3-run", "tiny.yaml", "--print-config", "train.steps=5"], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "steps: 5  # command line: train.steps=5" in lines
    assert "hidden: 32  # tiny.yaml:4:11" in lines
    assert any(line.endswith("# default") for line in lines)
    assert all("  # " in line for line in lines[1:] if not line.endswith(":"))
