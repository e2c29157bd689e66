"""`dsv3 plugins check --device` compares components on a GPU with the CPU. Runs only that check of the suite."""

import json
import os
import re
import shutil
import subprocess

import pytest

from support import BUILD, LIBRARIES, dsv3, on_cpu

KINDS = ("attention", "feed_forward", "position", "optimizer", "strategy")
FAULTY = BUILD / "tests/bad_plugins/prefix/lib/dsv3/plugins/libdsv3_fixture_faulty.so"
# Option settings to check; components that are not listed are checked with their defaults.
SETTINGS = {
    "attention/mla": ["", "heads=2 kv_lora_rank=8 qk_nope_dim=6 qk_rope_dim=4 v_dim=5"],
    "attention/mha": ["heads=4", "heads=4 kv_heads=2 head_dim=8 qk_norm=true rotary_share=0.5"],
    "optimizer/muon": ["", "ns_dtype=fp32"],
}


def components():
    listed = json.loads(on_cpu("dsv3", "plugins", "list", "--json", cwd="/").stdout)
    return [f"{entry['kind']}/{entry['name']}" for entry in listed if entry["kind"] in KINDS]


def words_of(settings=""):
    return ["--only", "device", *(word for setting in settings.split() for word in ("--set", setting))]


def check(*words, **environment):
    """Run `dsv3 plugins check` without the fake device in its environment, so that `--device fake` must load it."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "LD_LIBRARY_PATH")}
    return subprocess.run([BUILD / "bin/dsv3", "plugins", "check", *map(str, words)], cwd="/", text=True,
                          capture_output=True, timeout=120, env={**inherited, **environment})


def check_faulty(kind, fault):
    return check(FAULTY, "--component", f"{kind}/faulty", "--device", "fake", *words_of(f"fault={fault}"))


@pytest.mark.parametrize("component, settings",
                         [(name, settings) for name in components() for settings in SETTINGS.get(name, [""])])
def test_shipped_components_compute_the_same_on_a_gpu(component, settings):
    done = check(component, "--device", "fake", *words_of(settings))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    device        gives the same results on a GPU as on the CPU" in done.stdout


def test_all_kinds_with_tensors_have_shipped_components():
    assert {name.split("/")[0] for name in components()} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_component_without_a_fault_passes(kind):
    done = check_faulty(kind, "none")
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("kind, fault, text", [
    ("attention", "reads_device_memory",
     "the plugin crashed with SIGSEGV (Segmentation fault): host code accesses device memory (see the backtrace on stderr)"),
    ("attention", "reads_new_memory", "forward's result contains NaN or infinite values; the fake device fills new memory"),
    ("attention", "makes_host_tensor", "at least two devices, cuda:0 and cpu!"),
    ("feed_forward", "wrong_device", "forward's result is on device meta"),
    ("position", "throws", "the plugin throws an exception: broken on purpose"),
    ("optimizer", "nan", "NaN or infinite"),
])
def test_a_fault_fails_the_check_and_names_the_component(kind, fault, text):
    done = check_faulty(kind, fault)
    assert done.returncode == 3, done.stdout + done.stderr
    name, failed = done.stdout.split(f"{kind}/faulty\n")[1].split("\n", 1)
    assert name.startswith("  FAIL  device ") and text in failed, done.stdout
    if fault == "reads_device_memory":
        assert "host code accesses device memory" in done.stderr and FAULTY.name in done.stderr


def test_waits_are_notes():
    done = check_faulty("attention", "waits")
    assert done.returncode == 0, done.stdout + done.stderr
    notes = re.findall("note: (.*)", done.stdout)
    assert notes and all(re.match(r"the host waits for the GPU in forward \(\d+ time\(s\)\): item, called by " + FAULTY.name, note)
                         for note in notes), notes
    assert "note" not in check_faulty("attention", "none").stdout


def test_an_operator_that_only_a_gpu_can_run_is_not_a_failure():
    done = check_faulty("attention", "runs_gru")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skip  device" in done.stdout and "note: not testable on the fake device: aten::gru " in done.stdout
    assert "2 of 3 checks passed, 1 not testable" in done.stdout, done.stdout


def test_other_checks_do_not_use_the_device():
    """Checks that measure memory and threads also pass in a process with a GPU."""
    done = check("position/rope", "--device", "fake", "--json")
    names = {result["check"] for result in json.loads(done.stdout)}
    assert done.returncode == 0 and {"device", "threads", "memory", "process"} <= names, done.stdout


def test_without_a_device_the_check_does_not_exist():
    done = check("position/rope", *words_of())
    assert done.returncode == 2 and "check 'device' needs a device; pass --device cuda or --device fake" in done.stderr
    done = check("schedule/constant", "--device", "fake")  # computes without tensors
    assert done.returncode == 0 and "device  " not in done.stdout, done.stdout + done.stderr


def test_cuda_is_the_machines_gpu():
    """With the fake device preloaded, the machine has a GPU for `--device cuda`."""
    words = ["position/rope", "--device", "cuda", *words_of()]
    assert "ok    device" in dsv3("plugins", "check", *words, cwd="/").stdout
    done = check(*words, LD_LIBRARY_PATH=str(LIBRARIES), FAKE_CUDA_COUNT="0")
    assert done.returncode == 4 and "--device is cuda, but " in done.stderr, done.stderr
    assert "or pass --device fake, which needs no GPU" in done.stderr and "train.device" not in done.stderr
    assert "FAIL" not in done.stdout


def test_a_missing_fake_device_is_an_error(tmp_path):
    """The device belongs to the build or installation of libdsv3, so a copy of the library elsewhere finds none."""
    (tmp_path / "lib").mkdir()
    shutil.copy(BUILD / "lib/libdsv3.so", tmp_path / "lib")
    done = check("position/rope", "--device", "fake", LD_LIBRARY_PATH=str(tmp_path / "lib"))
    assert done.returncode == 4 and "fake CUDA device not found" in done.stderr, done.stdout + done.stderr
    assert str(tmp_path / "lib/dsv3/fake_cuda") in done.stderr
