"""Every mistake of the table is answered as its golden file says. DSV3_UPDATE_GOLDEN=1 writes the files anew: read them."""

import concurrent.futures
import os
import pathlib
import subprocess

import pytest

import checkpoints, command_line, data, folders, machine, plugins, yaml_mistakes  # noqa: E401, F401  (they fill the table)
from harness import BUILD, MISTAKES, experiment, outcome

GOLDEN = pathlib.Path(__file__).resolve().parent / "golden"
UPDATE = os.environ.get("DSV3_UPDATE_GOLDEN") == "1"
AT_ONCE = 2  # most of a case is one program starting up


@pytest.fixture(scope="session")
def outcomes(request, tmp_path_factory):
    """Futures of the outcomes of all selected mistakes, by name."""
    root = tmp_path_factory.mktemp("errors")
    names = [item.callspec.params["name"] for item in request.session.items if hasattr(item, "callspec")]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(outcome, MISTAKES[name], root / name)
               for name in names if not MISTAKES[name].needs()}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name, outcomes):
    if reason := MISTAKES[name].needs():
        pytest.skip(reason)
    text, exit_code = outcomes[name].result()
    assert exit_code == MISTAKES[name].exit_code, text
    for noise in ("frame #", "c10::", "terminate called", "Traceback", "std::__", "what():"):
        assert noise not in text, text
    golden = GOLDEN / f"{name}.txt"
    if UPDATE:
        golden.write_text(text)
    assert golden.exists(), f"{golden} is missing: write it with DSV3_UPDATE_GOLDEN=1 and read it\n{text}"
    assert text == golden.read_text()


def test_the_table_is_complete():
    """No golden file without its mistake, and as many mistakes as were promised."""
    assert {p.stem for p in GOLDEN.glob("*.txt")} == set(MISTAKES)
    assert len(MISTAKES) >= 60


def test_print_config_tells_origins(tmp_path):
    """Every value that was given has its file, line and column, or the command line behind it."""
    experiment(tmp_path)
    done = subprocess.run([BUILD / "bin/dsv3-run", "tiny.yaml", "--print-config", "train.steps=5"], cwd=tmp_path, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "steps: 5  # command line: train.steps=5" in lines
    assert "hidden: 32  # tiny.yaml:4:11" in lines
    assert any(line.endswith("# default") for line in lines)
    assert all("  # " in line for line in lines if not line.endswith(":"))
