"""Checkpoints, generation, logits and evaluation on the fake device match those on the CPU."""

import json
import re
import signal
import struct
import subprocess

import pytest

from support import BUILD, dsv3, environment, last_checkpoint, losses, make_tiny, metrics, on_cpu, resume, statistics, tensors, train

STEPS = ["train.steps=6", "schedule.warmup=0", "checkpoint.every=3", "validation.every=3", "train.trace_every=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a finished run of six steps on the fake device."""
    path = tmp_path_factory.mktemp("programs")
    make_tiny(path)
    train("tiny.yaml", *STEPS, "--run_name", "whole", cwd=path)
    return path


@pytest.mark.parametrize("sent, code", [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_resumed_run_equals_an_uninterrupted_one(folder, sent, code):
    """A stopped run saves a checkpoint. A killed run repeats the steps after its last checkpoint."""
    run = folder / f"runs/signal-{sent}"
    command = [BUILD / "bin/dsv3-run", "tiny.yaml", *STEPS, "train.device=cuda", "--run_name", run.name]
    process = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "step 4/6" in line:
            process.send_signal(sent)
            break
    process.communicate(timeout=60)
    assert process.returncode == code
    assert last_checkpoint(run).name in (("step-3",) if sent == signal.SIGKILL else ("step-4", "step-5"))
    assert "resuming from step" in resume(run, FAKE_CUDA_NAME="Other").stderr
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["gpu"]["name"] == "NVIDIA H100 80GB HBM3"
    (resumed,) = provenance["resumes"]
    assert resumed["gpu"]["name"] == "Other" and resumed["step"] >= 3 and {"time", "host", "plugins"} <= set(resumed)
    assert losses(run) == losses(folder / "runs/whole")
    assert tensors(last_checkpoint(run)) == tensors(last_checkpoint(folder / "runs/whole"))


def test_generated_text_is_equal(folder):
    words = ["generate", folder / "runs/whole", "--prompt", "the quick", "--prompt", "a", "--tokens", "24", "--json",
             "--precision", "fp32", "--seed", "3"]
    for more in ([], ["--temperature", "0"], ["--no-cache"], ["--no-speculate"]):
        device = dsv3(*words, *more, "--device", "cuda").stdout
        cpu = on_cpu("dsv3", *words, *more, "--device", "cpu").stdout
        assert device == cpu and len(device.splitlines()) == 2


def logits_of(path):
    data = path.read_bytes()
    size, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    return {name: struct.unpack(f"<{(entry['data_offsets'][1] - entry['data_offsets'][0]) // 4}f",
                                data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]])
            for name, entry in header.items() if name != "__metadata__"}


def test_logits_are_equal(folder):
    (folder / "tokens.json").write_text(json.dumps([[(7 * i + row) % 250 for i in range(40)] for row in range(2)]))
    words = ["logits", folder / "runs/whole", "--tokens", folder / "tokens.json", "--precision", "fp32"]
    dsv3(*words, "--device", "cuda", "--output", folder / "device.safetensors")
    on_cpu("dsv3", *words, "--device", "cpu", "--output", folder / "cpu.safetensors")
    device, cpu = logits_of(folder / "device.safetensors"), logits_of(folder / "cpu.safetensors")
    assert set(device) == set(cpu) and "logits" in cpu
    for name, values in cpu.items():
        assert max(abs(a - b) for a, b in zip(device[name], values, strict=True)) < 1e-5, name


def test_evaluation_is_equal(folder):
    (folder / "more.txt").write_text((folder / "text.txt").read_text()[:4000])
    words = ["eval", folder / "runs/whole", "--json", "--precision", "fp32"]
    for more in ([], ["--text", folder / "more.txt"]):
        device = json.loads(dsv3(*words, *more, "--device", "cuda", cwd=folder).stdout)
        cpu = json.loads(on_cpu("dsv3", *words, *more, "--device", "cpu", cwd=folder).stdout)
        assert flat(device) == pytest.approx(flat(cpu), rel=1e-5)


def flat(value, path=""):
    """Return the numbers in a JSON value by path, without rates and times."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, item in enumerate(value) for k, v in flat(item, f"{path}/{i}").items()}
    measured = isinstance(value, (int, float)) and not any(word in path for word in ("second", "per_s", "time"))
    return {path: value} if measured else {}


def test_unaligned_experts_are_reported_before_training(folder):
    words = ["tiny.yaml", "--check", "model.feed_forward.1.hidden=20"]
    warning = "train slowly on a GPU"
    assert warning in train(*words, "train.precision=bf16", cwd=folder).stderr
    assert warning not in train(*words, "train.precision=fp32", cwd=folder).stderr
    assert warning not in train("tiny.yaml", "--check", "train.precision=bf16", cwd=folder).stderr


def test_a_gpu_before_ampere_trains_in_fp32_and_without_flash_attention(folder):
    """Rows are packed, for which newer GPUs use a flash kernel."""
    for name, words, precision in (("turing", [], "fp32"), ("turing-bf16", ["train.precision=bf16"], "bf16")):
        log = folder / f"{name}.json"
        train("tiny.yaml", "train.precision=auto", "train.steps=1", "schedule.warmup=0", *words, "--run_name", name,
              cwd=folder, FAKE_CUDA_CAPABILITY="7.5", FAKE_CUDA_LOG=log)
        assert f"precision: {precision}" in (folder / "runs" / name / "config.yaml").read_text()
        kernels = statistics(log)["attention"]
        assert kernels and not any("flash" in kernel for kernel in kernels), kernels


@pytest.mark.parametrize("lr, decay, says", [
    ("1.0e+15", 0, r"; repeated with parameters that have been updated since: first non-finite value: "),
    ("1.0e+30", 0.1, r"; parameter \S+ is not finite; it is updated by optimizer 'adamw' \(.*\); the step cannot be repeated, "
                     r"because the parameters have been updated since; to search with the parameters of the step, start "
                     r"the run with train\.not_finite=skip"),
])
def test_the_search_for_non_finite_values_knows_that_the_parameters_have_changed(folder, lr, decay, says):
    """The step has updated the parameters, with gradients of 0, before its values are read. Weight decay overflows."""
    done = train("tiny.yaml", f"optimizer={{plugin: adamw, lr: {lr}, weight_decay: {decay}}}", "train.steps=30",
                 "--run_name", f"diverges-{decay}", cwd=folder, check=7)
    assert re.search(says, done.stderr) and "before the step" not in done.stderr, done.stderr


def test_a_crash_on_a_gpu_suggests_a_check_on_the_fake_device(folder):
    library = BUILD / "tests/bad_plugins/prefix/lib/dsv3/plugins/libdsv3_fixture_faulty.so"
    done = train("tiny.yaml", f"attention={{library: {library}, plugin: faulty, fault: reads_device_memory}}",
                 "--run_name", "crash", cwd=folder, check=-signal.SIGSEGV)
    assert re.search(r"run `dsv3 plugins check \S+ --device fake` to test the component", done.stderr), done.stderr


def test_running_out_of_memory_suggests_what_to_do(folder):
    peak = metrics(folder / "runs/whole")[6]["memory/peak_bytes"]
    done = train("tiny.yaml", "--run_name", "memory", cwd=folder, check=8, FAKE_CUDA_MEMORY=int(0.9 * peak))
    assert "bytes are free; reduce train.micro_batch" in done.stderr and "model.recompute=full" in done.stderr, done.stderr
