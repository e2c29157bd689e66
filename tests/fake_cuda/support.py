"""Run programs on the fake CUDA device and read its statistics."""

import json
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import importlib.util  # noqa: E402

# Load tests/e2e/support.py by path, because this module has the same name.
_spec = importlib.util.spec_from_file_location("e2e_support", pathlib.Path(__file__).parents[1] / "e2e/support.py")
e2e = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(e2e)

SOURCE, BUILD = e2e.SOURCE, e2e.BUILD
LIBRARIES = BUILD / "tests/fake_cuda/lib"
DEVICE = LIBRARIES / "libtorch_cuda.so"
CASES = BUILD / "bin/fake_cuda_cases"

make_tiny, metrics, losses, tensors, last_checkpoint = (
    e2e.make_tiny, e2e.metrics, e2e.losses, e2e.tensors, e2e.last_checkpoint)


def environment(preload=(), **settings):
    """Return the environment for the fake device. `preload` lists libraries to load before it, such as mutants."""
    inherited = {k: v for k, v in os.environ.items()
                 if not k.startswith("FAKE_CUDA_") and k not in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK")}
    return {**inherited, "OMP_NUM_THREADS": "1", "DSV3_RANKS": "gloo", "LD_LIBRARY_PATH": str(LIBRARIES),
            "LD_PRELOAD": ":".join(map(str, [*preload, DEVICE])), **{k: str(v) for k, v in settings.items()}}


def execute(command, *, cwd=None, check=0, timeout=300, **options):
    """Run a command on the fake device. Assert that its exit code is `check`, unless that is None."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment(**options), text=True,
                          capture_output=True, timeout=timeout)
    if check is not None:
        assert done.returncode == check, f"exit {done.returncode}, not {check}:\n{done.stdout}\n{done.stderr}"
    return done


def train(*words, **options):
    """Run dsv3-run with `train.device=cuda`. `options` are passed to execute()."""
    return execute([BUILD / "bin/dsv3-run", *words, "train.device=cuda"], **options)


def resume(run, **options):
    """Resume the run in the folder `run`, on the same device as before."""
    return execute([BUILD / "bin/dsv3-run", "--run_id", run.name], cwd=run.parents[1], **options)


def dsv3(*words, **options):
    """Run dsv3 with the fake device available. The caller passes --device."""
    return execute([BUILD / "bin/dsv3", *words], **options)


def on_cpu(program, *words, cwd=None, timeout=300):
    """Run a program without the fake device."""
    done = subprocess.run([str(word) for word in (BUILD / "bin" / program, *words)], cwd=cwd, text=True,
                          capture_output=True, timeout=timeout, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"exit {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def statistics(path):
    """Return the statistics in a FAKE_CUDA_LOG file, summed over their sections."""
    log = json.loads(pathlib.Path(path).read_text())
    total = {"operators": {}, "waits": {}, "attention": {}, "peak_bytes": log["peak_bytes"]}
    for section in log["sections"]:
        for name, count in section["operators"].items():
            sums = total["operators"].setdefault(name, dict.fromkeys(count, 0))
            for key, value in count.items():
                sums[key] += value
        for wait in section["waits"]:
            key = (wait["reason"], tuple(wait["site"]))
            total["waits"][key] = total["waits"].get(key, 0) + wait["calls"]
        for kernel, calls in section["attention"].items():
            total["attention"][kernel] = total["attention"].get(kernel, 0) + calls
    return total
