"""Checkpoints, generation, logits and evaluation on the fake device match those on the CPU."""

import json
import signal
import struct
import subprocess

import pytest

from support import BUILD, dsv3, environment, last_checkpoint, losses, make_tiny, on_cpu, resume, tensors, train

STEPS = ["train.steps=6", "schedule.warmup=0", "checkpoint.every=3", "validation.every=3"]


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
    assert "resuming from step" in resume(run).stderr
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
    warning = "experts of shape 40 x"
    assert warning in train(*words, "train.precision=bf16", cwd=folder).stderr
    assert warning not in train(*words, "train.precision=fp32", cwd=folder).stderr
    assert warning not in train("tiny.yaml", "--check", "train.precision=bf16", cwd=folder).stderr
