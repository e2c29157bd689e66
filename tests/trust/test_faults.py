"""A failed run never exits 0, and a stopped run loses nothing."""

import json
import os
import resource
import shutil
import signal
import subprocess
import time

import pytest

from stored import FIXTURES, dsv3, edit, overwrite_tensor, reseal, tiny_run
from support import RUN, dsv3_run, last_checkpoint, losses, make_tiny, metrics, tensors


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run, runs/r, and its export, hf."""
    folder = tmp_path_factory.mktemp("faults")
    tiny_run(folder, "model.mtp.depth=0")
    assert dsv3("export", "runs/r", "hf", cwd=folder).returncode == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of `trained` that a test may change."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def start(folder, *arguments, ready="step 1/", environment=None):
    """Start a run and wait until it prints `ready`."""
    process = subprocess.Popen([RUN, *map(str, arguments)], cwd=folder, stderr=subprocess.PIPE, text=True, errors="replace",
                               env={**os.environ, **(environment or {})},
                               # The tests themselves may run under nohup.
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))
    lines = []
    while ready not in (lines[-1] if lines else ""):
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    return process


def stop(process, number, limit=30):
    """Send a signal. Return the exit code, standard error and the time that the run took to end."""
    begin = time.monotonic()
    process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=limit)
    finally:
        process.kill()
    return process.returncode, errors, time.monotonic() - begin


EDITS = {
    "learning rate": ("lr: 0.02", "lr: 0.03", "optimizer.1.lr"),
    "seed": ("seed: 7", "seed: 8", "train.seed"),
    "model": ("routed: 4", "routed: 5", "feed_forward"),
    "schedule": ("min_ratio: 0.1", "min_ratio: 0.2", "schedule.min_ratio"),
}


@pytest.mark.promise("resume-differences")
@pytest.mark.parametrize("case", EDITS)
def test_settings_edited_in_the_run_folder_are_rejected(folder, case):
    old, new, key = EDITS[case]
    edit(folder / "runs/r/config.yaml", (old, new))
    done = dsv3_run("--run_id", "r", cwd=folder, check=2)
    assert "was started with other settings" in done.stderr and key in done.stderr


@pytest.mark.promise("resume-differences")
def test_another_cpu_capability_is_reported(tmp_path):
    run = tiny_run(tmp_path, "validation.every=2")
    shutil.rmtree(run / "checkpoints/step-4")
    done = subprocess.run([RUN, "--run_id", "r"], cwd=tmp_path, text=True, capture_output=True,
                          env={**os.environ, "ATEN_CPU_CAPABILITY": "default"})
    assert done.returncode == 0 and "the CPU capability was" in done.stderr, done.stderr
    again = dsv3_run("--run_id", "r", "train.steps=8", "train.log_every=2", cwd=tmp_path)
    assert "CPU capability was DEFAULT" in again.stderr
    resumes = json.loads((run / "provenance.json").read_text())["resumes"]
    assert resumes[1]["changes"] == [{"key": "train.steps", "before": "4", "after": "8"},
                                     {"key": "train.log_every", "before": "1", "after": "2"}]


@pytest.mark.promise("finite-checkpoints")
@pytest.mark.parametrize("name", ["model/", "buffer/", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_checkpoint_that_is_not_finite_is_not_loaded(folder, name, value):
    shutil.rmtree(folder / "runs/r/checkpoints/step-2", ignore_errors=True)
    checkpoint = last_checkpoint(folder / "runs/r")
    damaged = next(key for key, (dtype, *_) in tensors(checkpoint).items() if dtype == "F32" and (
        key.startswith(name) or (name == "optimizer" and not key.startswith(("model/", "buffer/")))))
    overwrite_tensor(checkpoint / "rank-00000.safetensors", damaged, value)
    reseal(checkpoint)
    done = dsv3_run("--run_id", "r", cwd=folder, check=5)
    assert f"tensor '{damaged}' has values that are not finite" in done.stderr
    if name == "model/":
        assert dsv3("eval", "runs/r", cwd=folder).returncode == 5


@pytest.mark.promise("finite-checkpoints")
def test_weights_that_are_not_finite_are_not_imported(folder):
    overwrite_tensor(folder / "hf/model.safetensors", "lm_head.weight", float("inf"))
    for words in (["generate", "hf", "--prompt", "a", "--tokens", "1"], ["import", "hf", "new"]):
        done = dsv3(*words, cwd=folder)
        assert done.returncode == 5 and "not finite" in done.stderr
    assert not (folder / "new").exists()


@pytest.mark.promise("finite-checkpoints")
def test_a_run_does_not_save_weights_that_are_not_finite(tmp_path):
    make_tiny(tmp_path)
    done = dsv3_run("tiny.yaml", "train.steps=3", "schedule.warmup=0", "optimizer.0.lr=1e39", "checkpoint.every=1", "--run_name",
                    "r", cwd=tmp_path, check=7)
    assert "values that are not finite" in done.stderr
    assert not list((tmp_path / "runs/r").glob("checkpoints/step-*"))


@pytest.mark.promise("skipped-updates")
@pytest.mark.parametrize("settings, step", [
    (["optimizer.0.lr=1e18"], 12), (["model.init.std=1e20"], 10), (["optimizer.1.lr=1e30"], 11),
    (["optimizer.0.lr=1e18", "train.max_skipped=3"], 5), (["model.init.std=1e20", "train.max_skipped=1"], 1)])
def test_a_run_that_skips_every_update_fails(tmp_path, settings, step):
    make_tiny(tmp_path)
    done = dsv3_run("tiny.yaml", "train.not_finite=skip", "checkpoint.every=0", *settings, "--run_name", "r", cwd=tmp_path, check=7)
    assert f"error: step {step} is not finite" in done.stderr and "train.max_skipped" in done.stderr
    assert json.loads((tmp_path / "runs/r/status.json").read_text())["exit_code"] == 7


@pytest.mark.promise("skipped-updates")
def test_skipped_updates_are_counted_over_a_resume(tmp_path):
    make_tiny(tmp_path)
    dsv3_run("tiny.yaml", "optimizer.0.lr=1e18", "train.not_finite=skip", "checkpoint.every=0", "train.steps=8", "schedule.warmup=0",
             "schedule.plugin=constant", "--run_name", "r", cwd=tmp_path)
    done = dsv3_run("--run_id", "r", "train.steps=30", cwd=tmp_path, check=7)
    assert "10 updates in a row" in done.stderr and "step 12 is not finite" in done.stderr


def limit_memory(gigabytes):
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))


@pytest.mark.promise("out-of-memory")
@pytest.mark.parametrize("settings", [["train.batch=4096", "train.sequence=512"], ["model.hidden=16384"]])
def test_too_little_memory_in_training(tmp_path, settings):
    make_tiny(tmp_path)
    done = subprocess.run([RUN, "tiny.yaml", *settings, "validation.every=0"], cwd=tmp_path, text=True, capture_output=True,
                          preexec_fn=limit_memory(6))
    assert done.returncode == 8 and "memory" in done.stderr and "train.micro_batch" in done.stderr, done.stderr


@pytest.mark.promise("out-of-memory")
def test_too_little_memory_in_generation(trained):
    done = dsv3("generate", "runs/r", "--prompt", "a" * 60000, "--tokens", "1", cwd=trained, preexec_fn=limit_memory(2))
    assert done.returncode == 8 and "memory" in done.stderr, done.stderr


@pytest.mark.promise("replaced-folder")
@pytest.mark.parametrize("case", ["moved", "replaced", "removed"])
def test_a_run_whose_folder_is_gone_stops(tmp_path, case):
    make_tiny(tmp_path)
    process = start(tmp_path, "tiny.yaml", "train.steps=100000", "checkpoint.every=50", "validation.every=0", "--run_name", "r")
    run = tmp_path / "runs/r"
    if case == "removed":
        while run.exists():
            shutil.rmtree(run, ignore_errors=True)
    else:
        run.rename(tmp_path / "runs/moved")
    if case == "replaced":
        run.mkdir()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5 and "was removed, moved or replaced" in errors, errors
    assert not list(run.iterdir()) if case == "replaced" else not run.exists()


STOPS = {
    "hang-up": (signal.SIGHUP, [], "step 1/", 75),
    "validation": (signal.SIGTERM, ["validation.every=3", "validation.batches=100000", "validation.share=0.5"], "run folder", 75),
    "an endless sample": (signal.SIGUSR2, ["samples.every=3", "samples.tokens=1000000", "samples.temperature=0"], "step 3/", 75),
    "many samples": (signal.SIGINT, ["samples.every=3", "samples.tokens=200", f"samples.prompts=[{'a, ' * 3000}a]"], "step 3/", 130),
}


def grow(text, times):
    """Repeat a text with changes. A validation on half of it takes about a second for 20 repetitions."""
    content = text.read_text()
    text.write_text("\n\n".join(content.replace("the", f"the {i}") for i in range(times)))


@pytest.mark.promise("stop-signals")
@pytest.mark.parametrize("case", STOPS)
def test_a_stop_saves_within_five_seconds(tmp_path, case):
    make_tiny(tmp_path)
    if case == "validation":
        grow(tmp_path / "text.txt", 250)
    number, settings, ready, code = STOPS[case]
    process = start(tmp_path, "tiny.yaml", "train.steps=1000000", "checkpoint.every=0", "validation.every=0", *settings, "--run_name",
                    "r", ready=ready)
    time.sleep(0.5)
    returned, errors, seconds = stop(process, number)
    assert returned == code and seconds < 5, errors
    status = json.loads((tmp_path / "runs/r/status.json").read_text())
    assert status["exit_code"] == code
    # The first validation is before the first step, when there is nothing to save yet.
    assert status["step"] == 0 if case == "validation" else \
        last_checkpoint(tmp_path / "runs/r").name == f"step-{status['step']}"


@pytest.mark.promise("stop-signals")
def test_a_validation_that_was_cut_short_is_repeated(tmp_path):
    make_tiny(tmp_path)
    grow(tmp_path / "text.txt", 30)
    settings = ["tiny.yaml", "train.steps=4", "schedule.warmup=0", "validation.every=2", "validation.batches=100000",
                "validation.share=0.5"]
    dsv3_run(*settings, "--run_name", "whole", cwd=tmp_path)
    process = start(tmp_path, *settings, "--run_name", "cut")
    time.sleep(0.2)
    code, errors, _ = stop(process, signal.SIGTERM)
    assert code == 75, errors
    manifest = json.loads((last_checkpoint(tmp_path / "runs/cut") / "manifest.json").read_text())
    assert manifest["state"]["cut_short"] == "validation" and manifest["val_loss"] is None and manifest["step"] == 2
    dsv3_run("--run_id", "cut", cwd=tmp_path)
    assert losses(tmp_path / "runs/cut") == losses(tmp_path / "runs/whole")


# Initial weights and steps of so many layers take about a second each.
SLOW = ["tiny.yaml", "model.hidden=1024", "model.layers=40", "train.steps=2", "schedule.warmup=0", "checkpoint.every=0",
        "validation.every=0", "--run_name", "r"]


@pytest.mark.promise("stop-signals")
@pytest.mark.parametrize("number, code, state", [(signal.SIGTERM, 75, "preempted"), (signal.SIGUSR1, 75, "preempted"),
                                                 (signal.SIGXCPU, 75, "preempted"), (signal.SIGINT, 130, "interrupted")])
def test_a_stop_before_the_first_step_is_recorded(tmp_path, number, code, state):
    make_tiny(tmp_path)
    process = subprocess.Popen([RUN, *SLOW], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    status = tmp_path / "runs/r/status.json"
    while not status.exists():
        assert process.poll() is None
    returned, errors, seconds = stop(process, number)
    assert returned == code and seconds < 5 and f"error: stopped by {number.name} while the run was starting" in errors
    stored = json.loads(status.read_text())
    assert (stored["state"], stored["exit_code"], stored["step"]) == (state, code, 0)
    if number == signal.SIGTERM:
        dsv3_run("--run_id", "r", cwd=tmp_path)
        assert json.loads(status.read_text())["state"] == "finished"


@pytest.mark.promise("stop-signals")
def test_a_second_interrupt_is_recorded(tmp_path):
    make_tiny(tmp_path)
    process = start(tmp_path, *SLOW, ready="step 0")
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    code, errors, _ = stop(process, signal.SIGINT)
    assert code == 130 and "error: stopped by SIGINT again, before it was saved" in errors
    assert json.loads((tmp_path / "runs/r/status.json").read_text())["state"] == "interrupted"


@pytest.mark.promise("stop-signals")
def test_nohup_and_a_closed_pipe_do_not_stop_a_run(tmp_path):
    make_tiny(tmp_path)
    process = subprocess.Popen(["nohup", RUN, "tiny.yaml", "--run_name", "r"], cwd=tmp_path, stderr=subprocess.PIPE,
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    process.stderr.readline()
    process.stderr.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0 and max(metrics(tmp_path / "runs/r")) == 30


@pytest.mark.promise("slow-trackers")
@pytest.mark.parametrize("fault, after", [("hang", 0), ("hang", 1)])
def test_a_tracker_that_hangs_does_not_hold_the_run(tmp_path, fault, after):
    make_tiny(tmp_path)
    faulty = f"plugin: faulty, library: {FIXTURES}/libdsv3_fixture_faulty.so, fault: {fault}, after: {after}"
    process = start(tmp_path, "tiny.yaml", "train.steps=4", "schedule.warmup=0", f"tracker=[{{{faulty}}}, {{plugin: csv}}]",
                    "--run_name", "r", ready="saved checkpoint")
    begin, status = time.monotonic(), {}
    while status.get("state") != "finished":
        assert time.monotonic() < begin + 5, status
        status = json.loads((tmp_path / "runs/r/status.json").read_text())
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "tracker 'faulty-0' is still busy" in errors and time.monotonic() < begin + 13
    assert (tmp_path / "runs/r/metrics.csv").exists()


@pytest.mark.promise("finite-checkpoints")
@pytest.mark.parametrize("damage", ["cut", "empty", "format"])
def test_a_damaged_manifest_does_not_restart_the_run(folder, damage):
    shutil.rmtree(folder / "runs/r/checkpoints/step-2", ignore_errors=True)
    checkpoint = last_checkpoint(folder / "runs/r")
    manifest = checkpoint / "manifest.json"
    if damage == "format":
        reseal(checkpoint, lambda content: content.update(format=3))
    else:
        manifest.write_text(manifest.read_text()[:3000] if damage == "cut" else "")
    weights = (checkpoint / "rank-00000.safetensors").read_bytes()
    failed = dsv3_run("--run_id", "r", cwd=folder, check=5)
    assert "all checkpoints of run 'r' are damaged" in failed.stderr
    assert (checkpoint / "rank-00000.safetensors").read_bytes() == weights
