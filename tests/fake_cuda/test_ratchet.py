"""Compare the cost of a training step on a GPU, for each shipped preset, with ratchet.json.

In these dry runs, operators compute only shapes, so a step of a full-size model takes less than a second. The test
fails if a number is higher or lower than in the file. Edit the file in the same change, or rewrite it with
`DSV3_UPDATE_RATCHET=1 .venv/bin/python -m pytest tests/fake_cuda/test_ratchet.py` (DSV3_TEST_FULL=1 includes the
presets that continuous integration skips).
"""

import json
import os
import pathlib
import re

import pytest

from support import BUILD, SOURCE, make_tiny, train

FILE = pathlib.Path(__file__).parent / "ratchet.json"
UPDATE = os.environ.get("DSV3_UPDATE_RATCHET") == "1"
FULL = os.environ.get("DSV3_TEST_FULL") == "1"

# Steps 2 and 4 write metrics.
STEPS, LOG_EVERY = 4, 2
WHOLE = ["data=synthetic", "data.tokenizer=bytes"]
PACKED = ["data={path: text.txt}", "data.tokenizer=bytes"]
RECOMPUTE = ["model.recompute=full"]
# Number of rows in a micro-batch and their length in tokens, as in experiments/base. A step has one micro-batch.
MICRO_BATCH = {"nano": (8, 2048), "nano_muon": (8, 2048), "small": (8, 2048), "medium": (4, 4096)}
RUNS = {
    "nano, whole rows": ("nano", WHOLE, "9.0"),
    "nano, packed rows": ("nano", PACKED, "9.0"),
    "nano, whole rows, recompute": ("nano", WHOLE + RECOMPUTE, "9.0"),
    "nano_muon, whole rows": ("nano_muon", WHOLE, "9.0"),
    "nano, packed rows, capability 8.9": ("nano", PACKED, "8.9"),
    "small, whole rows": ("small", WHOLE, "9.0"),
    "small, packed rows": ("small", PACKED, "9.0"),
    "small, whole rows, recompute": ("small", WHOLE + RECOMPUTE, "9.0"),
    "medium, whole rows": ("medium", WHOLE, "9.0"),
    "medium, packed rows": ("medium", PACKED, "9.0"),
    "medium, whole rows, recompute": ("medium", WHOLE + RECOMPUTE, "9.0"),
}
MEANING = {
    "waits_per_step": "number of times the host waits for the device in a step without metrics",
    "waits_per_logging_step": "number of times the host waits for the device in a step that writes metrics",
    "event_waits_per_step": "number of times the host waits for an event in a step",
    "operators_per_step": "number of operator calls and copies, each with one or more kernel launches",
    "gb_per_step": "GB read and written by these operators and copies",
    "peak_gb": "peak memory allocated on the device, in GB",
    "dry_run_gb": "peak memory that dsv3-run --dry-run predicts, in GB",
    "attention": "number of calls to each attention kernel in a step, including recomputed ones",
}


def words_of(preset, words):
    rows, length = MICRO_BATCH[preset]
    return [SOURCE / f"experiments/{preset}.yaml", *words, f"train.batch={rows}", f"train.micro_batch={rows}",
            f"train.tokens={10 * STEPS * rows * length}", "train.precision=bf16", "train.seed=1",
            f"train.log_every={LOG_EVERY}", "validation.every=0", "validation.batches=1", "validation.share=0.1",
            "samples.every=0"]


def predicted_gb(folder, preset, words):
    done = train(*words_of(preset, words), "schedule.warmup=0", "--dry-run", cwd=folder)
    return float(re.search(r"^memory .*: ([\d.]+) GB$", done.stdout, re.M)[1])


def measure(folder, preset, words, capability):
    """Return the numbers in ratchet.json for one run, and its waits by call site."""
    make_tiny(folder)
    train(*words_of(preset, words), "--plugin-path", BUILD / "tests/fake_cuda/plugins",
          f"schedule={{plugin: marked, steps: {STEPS}}}", cwd=folder, FAKE_CUDA_DRY=1, FAKE_CUDA_CAPABILITY=capability,
          FAKE_CUDA_MEMORY=10**12, FAKE_CUDA_LOG=folder / "log.json")
    sections = {s["name"]: s for s in json.loads((folder / "log.json").read_text())["sections"]}
    # A section lasts from the middle of its step, when the schedule is called, to the middle of the next.
    step, logging = sections["step 1"], sections["step 2"]
    # The number of documents in packed rows changes from step to step, and with it a few bytes.
    assert step["total"] == pytest.approx(sections["step 3"]["total"], rel=1e-6), "the costs of steps 1 and 3 differ"
    def waits(section, kind="waits"):
        return sum(wait["calls"] for wait in section[kind])
    numbers = {
        "waits_per_step": waits(step),
        "waits_per_logging_step": waits(logging),
        "event_waits_per_step": waits(step, "event_waits"),
        "operators_per_step": step["total"]["calls"],
        "gb_per_step": round(step["total"]["bytes"] / 1e9, 2),
        "peak_gb": round(max(step["peak_bytes"], logging["peak_bytes"]) / 1e9, 2),
        "dry_run_gb": predicted_gb(folder, preset, words),
        "attention": step["attention"],
    }
    return numbers, [*step["waits"], *logging["waits"]]


def line_of(run, key):
    """Return the number of the line in ratchet.json that contains a value, or None."""
    lines = FILE.read_text().splitlines() if FILE.exists() else []
    inside = False
    for number, line in enumerate(lines, 1):
        if line.startswith(f' "{run}"'):
            inside = True
        elif inside and line.strip().startswith(f'"{key}"'):
            return number
    return None


def difference(run, key, expected, value):
    place = f"{FILE.relative_to(SOURCE)}:{line_of(run, key) or 1}"
    return f"{place}: '{run}': {key} is now {json.dumps(value)}, not {json.dumps(expected)} ({MEANING[key]})"


def describe(waits):
    by_site = {}
    for wait in waits:
        by_site[wait["reason"], " < ".join(wait["site"][:3])] = wait["calls"]
    return [f"  {calls:5} {reason} at {site}" for (reason, site), calls in sorted(by_site.items(), key=lambda w: -w[1])]


@pytest.mark.parametrize("run", RUNS)
def test_a_step_costs_what_the_file_says(tmp_path, run):
    preset, words, capability = RUNS[run]
    if not (FULL or preset.startswith("nano")):
        pytest.skip("only with DSV3_TEST_FULL=1")
    numbers, waits = measure(tmp_path, preset, words, capability)
    recorded = json.loads(FILE.read_text()) if FILE.exists() else {}
    if UPDATE:
        recorded[run] = numbers
        ordered = {name: recorded[name] for name in RUNS if name in recorded}
        FILE.write_text(json.dumps(ordered, indent=1) + "\n")
        return
    expected = recorded.get(run, {})
    different = [difference(run, key, expected.get(key), value) for key, value in numbers.items()
                 if expected.get(key) != value]
    if different:
        pytest.fail("\n".join([*different, "edit these lines if the change is intended, or run with DSV3_UPDATE_RATCHET=1",
                               "waits in the measured steps:", *describe(waits)]), pytrace=False)


def test_the_file_has_exactly_these_runs():
    assert list(json.loads(FILE.read_text())) == list(RUNS)
