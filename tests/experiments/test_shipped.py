"""Every shipped experiment passes --check --config-only and --dry-run without its data, and the presets' parameter
counts match the formulas."""

import re
import resource
import subprocess

import pytest

from formula import PRESETS, counts
from support import RUN, SOURCE, dsv3_run

PRESETS_OF_CONVENTIONS = sorted((SOURCE / "experiments/conventions").glob("*.yaml"))
SHIPPED = sorted(set((SOURCE / "experiments").rglob("*.yaml")) - set(PRESETS_OF_CONVENTIONS))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: str(p.relative_to(SOURCE / "experiments")))
def test_check_and_dry_run(file, tmp_path):
    assert "ok" in dsv3_run(file, "--check", "--config-only", cwd=tmp_path).stdout
    def limit():
        resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
    done = subprocess.run([RUN, file, "--dry-run", "--gpu-memory", "8G"], cwd=tmp_path, text=True, capture_output=True,
                          preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert "memory" in done.stdout and "steps" in done.stdout and "fits" in done.stdout
    assert list(tmp_path.iterdir()) == []  # writes nothing


@pytest.mark.parametrize("preset", PRESETS_OF_CONVENTIONS, ids=lambda p: p.stem)
def test_conventions_are_known(preset, tmp_path):
    """Every convention in a preset is an option of a built-in plugin, so an experiment that uses all these plugins must
    contain every value of the preset."""
    bases = f"[{SOURCE}/experiments/nano_muon.yaml, {preset}]"
    (tmp_path / "all.yaml").write_text(f"dsv3: 1\nextends: {bases}\n")
    out = dsv3_run("all.yaml", "--print-config", cwd=tmp_path).stdout
    entries = re.findall(r"^  [\w.]+\.(\w+): (\w+)$", preset.read_text(), re.M)
    assert len(entries) >= 3
    for option, value in entries:
        assert re.search(rf"^ +{option}: {value}  # {preset}:\d+:\d+$", out, re.M), (option, value)


@pytest.mark.parametrize("preset", PRESETS)
def test_counts_are_the_formulas(preset, tmp_path):
    expected = counts(PRESETS[preset])
    out = dsv3_run(SOURCE / f"experiments/{preset}.yaml", "--dry-run", cwd=tmp_path).stdout
    exact = [tuple(map(int, m)) for m in re.findall(r"\((\d+) / (\d+)[;)]", out)]
    assert exact == [(expected.total, expected.active), (expected.total_without_embeddings, expected.active_without_embeddings)]


def test_nano_muon_debug_runs_the_full_preset_on_synthetic_data(tmp_path):
    done = dsv3_run(SOURCE / "experiments/nano_muon.yaml", "--debug", "train.steps=2", "train.batch=1",
                    "train.micro_batch=1", "--output", tmp_path, cwd=tmp_path, timeout=900)
    assert "step 2/2" in done.stderr and "322.4 M parameters" in done.stderr


def test_short_optimizer_replaces_the_groups(tmp_path):
    out = dsv3_run(SOURCE / "experiments/nano_muon.yaml", "--dry-run", "optimizer=adamw", cwd=tmp_path).stdout
    plan = out[out.index("group "):]
    assert "adamw" in plan and "muon" not in plan
