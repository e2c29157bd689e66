"""Tests GPU set-up and detection: a driver without CUDA libraries, CUDA libraries without a driver, and what a run
records about its GPU. Uses the fake driver and device in tests/fake_cuda, so it also runs on machines without a GPU."""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from support import BUILD, RUN, SOURCE, losses, make_tiny, metrics

FAKE = BUILD / "tests/fake_cuda/lib"
DRIVER, DEVICE = FAKE / "libcuda.so.1", FAKE / "libtorch_cuda.so"
# Libraries that every Debian installation has, or that the torch wheel contains.
SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|gomp|c10|c10_cuda|torch_\w+)\.so\b.*|ld-linux.*")


def has_gpu():
    return os.path.exists("/dev/nvidiactl")


def run(*words, cwd, check=0, **environment):
    """Run dsv3-run with additional environment variables, assert its exit code, and return the process."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "CUDA_VISIBLE_DEVICES")}
    done = subprocess.run([RUN, "tiny.yaml", *words], cwd=cwd, text=True, capture_output=True, timeout=300,
                          env={**inherited, "OMP_NUM_THREADS": "1", **environment})
    assert done.returncode == check, f"exit {done.returncode}, not {check}:\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def folder(tmp_path):
    make_tiny(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def broken_libraries(tmp_path_factory):
    """A folder with the fake driver and a libtorch_cuda.so that needs a library that does not exist."""
    folder = tmp_path_factory.mktemp("libraries")
    (folder / "libcuda.so.1").symlink_to(DRIVER)
    (folder / "empty.c").write_text("")
    needed = folder / "libcufile_absent.so.0"
    subprocess.run(["cc", "-shared", f"-Wl,-soname,{needed.name}", "-o", needed, folder / "empty.c"], check=True)
    subprocess.run(["cc", "-shared", "-Wl,--no-as-needed", "-o", folder / "libtorch_cuda.so", folder / "empty.c", needed],
                   check=True)
    needed.unlink()
    return folder


def on_fake_gpu(**environment):
    return {"LD_LIBRARY_PATH": str(FAKE), "LD_PRELOAD": str(DEVICE), **environment}


@pytest.mark.parametrize("words", [["--check"], ["--run_name", "new"]], ids=" ".join)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_without_libraries_is_an_error(folder, broken_libraries, device, words):
    done = run(f"train.device={device}", *words, cwd=folder, check=4, LD_LIBRARY_PATH=str(broken_libraries))
    assert "GPU 'NVIDIA H100 80GB HBM3' cannot be used, because LibTorch's CUDA libraries do not load: " \
           "libcufile_absent.so.0: cannot open shared object file" in done.stderr
    assert "note: install them with `tools/dev setup --cuda`, or set train.device=cpu" in done.stderr
    assert not (folder / "runs/new").exists()


def test_a_dry_run_needs_no_libraries(folder, broken_libraries):
    done = run("--dry-run", cwd=folder, LD_LIBRARY_PATH=str(broken_libraries))
    assert "at 40% of the GPU's peak of 989 TFLOP/s" in done.stdout


def test_the_cpu_needs_no_libraries(folder, broken_libraries):
    run("train.device=cpu", "--check", cwd=folder, LD_LIBRARY_PATH=str(broken_libraries))


def test_without_a_driver(folder):
    if has_gpu():
        pytest.skip("this machine has a GPU")
    done = run("train.device=cuda", "--check", cwd=folder, check=4)
    assert "train.device is cuda, but no NVIDIA driver was found (libcuda.so.1: cannot open shared object file" in done.stderr
    assert "note: install the driver so that nvidia-smi lists the GPU, or set train.device=cpu" in done.stderr


def test_a_driver_without_gpus(folder):
    """`auto` selects the CPU. With `cuda`, the error names the environment variable that hides the GPUs."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    run("--check", cwd=folder, LD_LIBRARY_PATH=str(FAKE), **hidden)
    done = run("train.device=cuda", "--check", cwd=folder, check=4, LD_LIBRARY_PATH=str(FAKE), **hidden)
    assert "train.device is cuda, but the NVIDIA driver reports no GPU with CUDA_VISIBLE_DEVICES=''" in done.stderr
    assert "note: check nvidia-smi and CUDA_VISIBLE_DEVICES, or set train.device=cpu" in done.stderr


@pytest.mark.parametrize("visible, warns", [("9", True), ("GPU-0", True), ("", False), ("-1", False), ("NoDevFiles", False)])
def test_gpus_that_are_hidden_by_mistake(folder, visible, warns):
    done = run("--check", cwd=folder, LD_LIBRARY_PATH=str(FAKE), CUDA_VISIBLE_DEVICES=visible)
    assert ("using the CPU, because the NVIDIA driver reports no GPU with CUDA_VISIBLE_DEVICES=" in done.stderr) == warns


def test_a_run_that_began_on_a_gpu_does_not_resume_without_one(folder):
    """The advice works: a new run starts from the weights. `auto` chose the GPU."""
    run("train.steps=2", "schedule.warmup=0", "--run_name", "gpu", cwd=folder, **on_fake_gpu())
    none = {"LD_LIBRARY_PATH": str(FAKE), "CUDA_VISIBLE_DEVICES": ""}
    advice = (f"resume the run on a machine with a GPU or start a new run from its weights with --from "
              f"{folder}/runs/gpu --device cpu")
    for words in (["--run_name", "gpu", "--resume", "auto"], ["--run_name", "gpu", "--resume", "auto", "--check"]):
        done = run("train.steps=2", "schedule.warmup=0", *words, cwd=folder, check=4, **none)
        assert advice in done.stderr and "set train.device=cpu" not in done.stderr, done.stderr
    run("train.steps=2", "schedule.warmup=0", "--from", f"{folder}/runs/gpu", "--device", "cpu", "--run_name", "cpu",
        cwd=folder, **none)
    done = subprocess.run([BUILD / "bin/dsv3", "eval", folder / "runs/gpu", "--device", "cuda"], cwd=folder, text=True,
                          capture_output=True, timeout=120, env={**os.environ, **none})
    assert done.returncode == 4 and "--device is cuda, but " in done.stderr and "or pass --device cpu" in done.stderr


def test_the_local_rank_selects_a_gpu(folder):
    two = {"FAKE_CUDA_COUNT": "3", "CUDA_VISIBLE_DEVICES": "0,2"}
    done = run("train.device=cuda", "train.steps=1", "schedule.warmup=0", "--run_name", "second", cwd=folder,
               **on_fake_gpu(LOCAL_RANK="1", **two))
    assert "cuda:1: NVIDIA H100" in done.stderr
    assert json.loads((folder / "runs/second/provenance.json").read_text())["gpu"]["index"] == 1
    done = run("train.device=cuda", "--check", cwd=folder, check=4, **on_fake_gpu(LOCAL_RANK="2", **two))
    assert "local rank 2 needs its own GPU, but only 2 GPU(s) are visible" in done.stderr
    done = run("train.device=cuda", "--check", cwd=folder, check=4, **on_fake_gpu(LOCAL_RANK="first"))
    assert "LOCAL_RANK is 'first', not a GPU index" in done.stderr


def test_a_run_on_a_gpu_records_it(folder):
    done = run("train.steps=3", "schedule.warmup=0", "train.deterministic=true", "--run_name", "new", cwd=folder,
               **on_fake_gpu())
    assert "cuda:0: NVIDIA H100 80GB HBM3, " in done.stderr and "compute capability 9.0\n" in done.stderr
    gpu = json.loads((folder / "runs/new/provenance.json").read_text())["gpu"]
    assert (gpu["name"], gpu["index"], gpu["capability"]) == ("NVIDIA H100 80GB HBM3", 0, "9.0")
    assert gpu["memory_bytes"] == 85520809984 and gpu["cuda"] == {"driver": "13.0", "runtime": "13.0"}
    assert gpu["driver"] == "580.82.07"
    assert gpu["tf32"]["matmul"] is False and gpu["deterministic"] is True
    last = metrics(folder / "runs/new")[3]
    # The metric counts tensors (a few megabytes), not the process's memory (hundreds of megabytes).
    assert 500_000 < last["memory/peak_bytes"] < 100e6
    assert last["throughput/mfu"] > 0


def gpu_metrics(folder, name, *words, **environment):
    run("train.steps=2", "schedule.warmup=0", "--run_name", name, *words, cwd=folder, **environment)
    return {name: value for name, value in metrics(folder / "runs" / name)[2].items() if name.startswith("system/gpu_")}


def test_a_run_records_what_all_gpus_of_the_machine_do(folder):
    """The fake GPU i uses 10 * (i + 1) percent of 80 GB and 700 W."""
    two = {"FAKE_CUDA_COUNT": "2", "CUDA_VISIBLE_DEVICES": "1"}
    expected = {f"system/gpu_{i}_{name}": percent * scale for i, percent in ((0, 10), (1, 20)) for name, scale in (
        ("memory_usage_percentage", 1), ("memory_usage_megabytes", 800), ("utilization_percentage", 1),
        ("power_usage_watts", 7), ("power_usage_percentage", 1))}
    assert gpu_metrics(folder, "gpu", **on_fake_gpu(**two)) == expected
    assert gpu_metrics(folder, "cpu", "train.device=cpu", LD_LIBRARY_PATH=str(FAKE), **two) == expected
    assert gpu_metrics(folder, "mig", **on_fake_gpu(FAKE_NVML_MIG="1", **two)) == {
        name: value for name, value in expected.items() if "utilization" not in name}


def test_a_run_on_a_gpu_works_without_nvml(folder):
    assert gpu_metrics(folder, "failed", **on_fake_gpu(FAKE_NVML_ERROR="9")) == {}
    assert "no system metrics of GPUs: nvmlInit failed with error 9" in (folder / "runs/failed/log.txt").read_text()
    libraries = folder / "libraries"
    libraries.mkdir()
    (libraries / DRIVER.name).symlink_to(DRIVER)
    assert has_gpu() or gpu_metrics(folder, "missing", **on_fake_gpu(LD_LIBRARY_PATH=str(libraries))) == {}


def test_a_gpu_with_an_unknown_peak_reports_no_mfu(folder):
    done = run("train.steps=2", "schedule.warmup=0", "--run_name", "new", cwd=folder,
               **on_fake_gpu(FAKE_CUDA_NAME="NVIDIA Test Card"))
    assert done.stderr.count("NVIDIA Test Card, ") == 1 and "peak unknown, so no MFU is reported" in done.stderr
    assert "throughput/mfu" not in metrics(folder / "runs/new")[2]


def test_a_driver_that_does_not_work(folder):
    """`auto` trains on the CPU and logs the reason."""
    broken = {"LD_LIBRARY_PATH": str(FAKE), "FAKE_CUDA_ERROR": "803"}
    why = "the NVIDIA driver does not work (error 803: system has unsupported display driver / cuda driver combination)"
    done = run("train.steps=1", "schedule.warmup=0", "--run_name", "new", cwd=folder, **broken)
    assert "warning using the CPU, because " + why in done.stderr
    assert "using the CPU, because " + why in run("--check", cwd=folder, **broken).stderr
    done = run("train.device=cuda", "--check", cwd=folder, check=4, **broken)
    assert "train.device is cuda, but " + why in done.stderr


def test_an_old_driver(folder):
    done = run("--check", cwd=folder, check=4, **on_fake_gpu(FAKE_CUDA_VERSION="12040"))
    assert "its driver supports CUDA 12.4, but LibTorch needs 13.0" in done.stderr
    assert "note: update the NVIDIA driver, or set train.device=cpu" in done.stderr


def test_an_old_gpu(folder):
    done = run("train.device=cuda", "--check", cwd=folder, check=4, **on_fake_gpu(FAKE_CUDA_CAPABILITY="7.0"))
    assert "its compute capability is 7.0, but LibTorch for CUDA 13 needs 7.5" in done.stderr


def test_deterministic_changes_nothing_on_a_cpu(folder):
    for name, value in ("plain", "false"), ("deterministic", "true"):
        run("train.device=cpu", "train.steps=4", "schedule.warmup=0", f"train.deterministic={value}", "--run_name", name,
            cwd=folder)
    assert losses(folder / "runs/plain") == losses(folder / "runs/deterministic")
    assert "gpu" not in json.loads((folder / "runs/plain/provenance.json").read_text())


def needed_by(library):
    text = subprocess.run(["readelf", "-d", library], text=True, capture_output=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", text)


def test_the_cuda_wheels_are_complete():
    """Every library that LibTorch's CUDA libraries need, directly or indirectly, is in a wheel that set-up installs."""
    provided = {}
    for file in "requirements.txt", "requirements-cuda.txt":
        for name in re.findall(r"^(nvidia-[\w-]+)==", (SOURCE / file).read_text(), re.M):
            for path in importlib.metadata.files(name):
                if ".so" in path.name:
                    provided[path.name] = pathlib.Path(path.locate())
    torch = pathlib.Path(importlib.metadata.distribution("torch").locate_file("torch/lib"))
    seen, queue = set(), [torch / f"lib{name}.so" for name in ("torch_cuda", "c10_cuda", "torch_nvshmem", "torch_cuda_linalg")]
    while queue:
        library = queue.pop()
        for name in needed_by(library):
            if name in seen or SYSTEM.fullmatch(name):
                continue
            seen.add(name)
            assert name in provided, f"{library.name} needs {name}, which no pinned wheel contains"
            queue.append(provided[name])
    assert len(seen) > 10


def test_the_cuda_library_loads_without_a_driver():
    torch = importlib.metadata.distribution("torch").locate_file("torch/lib/libtorch_cuda.so")
    subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(torch)!r})"], check=True, timeout=300)


def test_the_library_for_nccl_fits_the_installed_libtorch():
    """All of its symbols exist in LibTorch's CUDA library, which also loads without a driver."""
    script = """
import ctypes, os, sys
ctypes.CDLL(sys.argv[1] + "/libtorch/torch/lib/libtorch_cuda.so", os.RTLD_NOW | os.RTLD_GLOBAL)
ctypes.CDLL(sys.argv[1] + "/libdsv3_nccl.so", os.RTLD_NOW).dsv3_make_nccl_group
"""
    done = subprocess.run([sys.executable, "-c", script, BUILD / "lib/dsv3"], text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
