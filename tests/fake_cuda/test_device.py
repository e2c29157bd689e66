"""The fake device detects invalid use of a GPU, and its operators return the same results as on the host."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from support import BUILD, CASES, LIBRARIES, environment, execute, make_tiny, statistics, train

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import cuda_ops  # noqa: E402


def case(name, check=0, **options):
    return execute([CASES, name], check=check, **options)


@pytest.mark.parametrize("name", ["read_on_the_host", "write_on_the_host", "read_in_backward"])
def test_host_code_cannot_access_device_memory(name):
    done = case(name, check=-11)
    assert "host code accesses device memory" in done.stderr
    assert "fake_cuda_cases" in done.stderr  # the backtrace


@pytest.mark.parametrize("name", ["read_unwritten", "read_reused", "read_before_arrival"])
def test_memory_that_nobody_wrote_is_nan(name):
    assert "nan" in case(name).stdout


@pytest.mark.parametrize("name, message", [
    ("mix_devices", r"at least two devices, cuda:0 and cpu! \(aten::add"),
    ("mix_devices_in_a_list", r"at least two devices, cuda:0 and cpu! \(aten::cat"),
    ("call_without_kernel", "LibTorch has no CUDA kernel"),
    ("exceed_memory", "CUDA out of memory"),
    ("change_pinned_source", "changed pinned memory before the device had copied it"),
    ("softmax_of_bf16", "conversion is supported for Half type only"),
    ("group_with_odd_rows", "strides should be multiple of 16 bytes"),
    ("attend_packed_with_different_dims", "the same head dimension"),
    ("multiply_integers", "not implemented for 'Long'"),
    ("count_without_determinism", "_histc_cuda with floating point input does not have a deterministic implementation"),
    ("use_host_generator", "Expected a 'cuda' device type for generator but found 'cpu'"),
    ("call_without_twin", "not testable on the fake device: aten::_efficient_attention_forward .*nor a twin"),
    ("run_gru", "not testable on the fake device: aten::gru "),
])
def test_invalid_calls_throw(name, message):
    assert re.search("threw: .*" + message, case(name).stdout)


@pytest.mark.parametrize("name, bound", [
    ("run_backward_on_device_thread", 0), ("multiply_into_fp32", 1e-6), ("group", 1e-6), ("update_with_adamw", 1e-6),
    ("normalize_fp32", 1e-6), ("normalize_bf16", 0.02), ("compute_with_complex_numbers", 1e-5), ("convolve", 1e-5),
    ("draw_from_device_generator", 0),
    ("attend_equal_dims", 0.02), ("attend_different_dims", 0.02), ("attend_grouped", 0.02), ("attend_masked", 0.02),
    ("attend_packed", 0.02)])
def test_twins_compute_what_the_host_computes(name, bound):
    differences = [float(line) for line in case(name).stdout.split()]
    assert differences and max(differences) <= bound, differences


@pytest.mark.parametrize("name, bound", [
    ("draw_uniform", 0), ("drop_out", 0),
    ("attend_window", 0.02), ("attend_window_packed", 0.02), ("attend_sinks", 0.02), ("attend_sinks_packed", 0.02),
    ("attend_softcap", 0.02), ("attend_softcap_packed", 0.02), ("attend_fp32_packed", 1e-5), ("attend_with_metrics", 0.02)])
def test_operators_of_dsv3_compute_what_the_host_computes(name, bound):
    differences = [float(line) for line in case(name).stdout.split()]
    assert differences and max(differences) <= bound, differences


@pytest.mark.parametrize("name, kernels", [
    ("attend_window", {"flash_varlen": 1}), ("attend_window_packed", {"flash_varlen": 1}),
    ("attend_sinks", {"flash_varlen": 1}), ("attend_sinks_packed", {"flash_varlen": 1}),
    ("attend_softcap", {}), ("attend_fp32_packed", {})])
def test_windows_and_sinks_use_the_flash_kernel(tmp_path, name, kernels):
    case(name, FAKE_CUDA_LOG=tmp_path / "log.json")
    assert statistics(tmp_path / "log.json").get("attention", {}) == kernels


def test_attention_with_options_does_not_wait():
    assert case("attend_without_waiting", FAKE_CUDA_SYNC="error").stdout == ""


@pytest.mark.parametrize("name, capability, kernel", [
    ("attend_equal_dims", "9.0", "cudnn"), ("attend_equal_dims", "8.9", "flash"),
    ("attend_different_dims", "9.0", "cudnn"), ("attend_different_dims", "8.9", "efficient"),
    ("attend_masked", "9.0", "cudnn"), ("attend_masked", "8.0", "efficient"),
    ("attend_grouped", "8.0", "flash"), ("attend_packed", "9.0", "flash_varlen"),
    ("attend_equal_dims", "7.5", "math"), ("attend_masked", "7.5", "math")])
def test_libtorch_chooses_an_attention_kernel(tmp_path, name, capability, kernel):
    differences = case(name, FAKE_CUDA_CAPABILITY=capability, FAKE_CUDA_LOG=tmp_path / "log.json").stdout.split()
    assert max(map(float, differences)) < 0.02
    assert statistics(tmp_path / "log.json")["attention"] == {kernel: 1}


def test_flash_attention_needs_an_ampere_gpu():
    assert "threw: FlashAttention only supports Ampere GPUs" in case("attend_packed", FAKE_CUDA_CAPABILITY="7.5").stdout


def test_attention_kernels_are_those_of_an_h100():
    """Attention uses the kernels that LibTorch 2.11 with cuDNN 9.19 chose on an H100."""
    assert case("choose_attention").stdout.splitlines() == [
        "64/64: cudnn", "48/32: cudnn", "192/128: cudnn", "masked: cudnn", "grouped: cudnn", "one query: cudnn",
        "one key: flash", "fp32: efficient", "12/8: math", "deterministic: flash"]


def waits_of(tmp_path, name):
    case(name, FAKE_CUDA_LOG=tmp_path / "log.json")
    return [reason for reason, _ in statistics(tmp_path / "log.json")["waits"]]


def test_waits_are_counted(tmp_path):
    assert waits_of(tmp_path, "add_a_number") == ["item"]
    assert waits_of(tmp_path, "index_by_mask") == ["aten::index.Tensor", "copy to the device, 256 bytes of pageable memory"]


def test_index_put_copies_to_the_device_of_its_result(tmp_path):
    assert float(case("put_a_number").stdout) == 0
    assert waits_of(tmp_path, "put_a_number") == [
        "aten::_index_put_impl_ copies a value to the device of the result",
        "aten::_index_put_impl_ copies an index to the host", "copy to the host, 16 bytes"]


def test_copies_of_pinned_memory_are_no_waits(tmp_path):
    assert waits_of(tmp_path, "copy_pinned") == []
    (section,) = json.loads((tmp_path / "log.json").read_text())["sections"]
    (wait,) = section["event_waits"]
    assert wait["calls"] == 1 and wait["operators_since"] == 0
    assert case("copy_pinned", FAKE_CUDA_SYNC="error").stdout == "pinned 1 1, equal 1\n"


def test_a_wait_can_be_an_error():
    assert "threw: the host waits for the device: item" in case("add_a_number", FAKE_CUDA_SYNC="error").stdout


def test_memory_statistics():
    # 4000 and 4194304 bytes, each rounded up to a multiple of 512.
    assert case("measure_memory").stdout.splitlines() == ["allocated 4096 peak 4198400 reserved 4198400",
                                                          "peak 4096 reserved 4096"]


def test_a_wait_names_its_call_site(tmp_path):
    make_tiny(tmp_path)
    train("tiny.yaml", "train.steps=1", "schedule.warmup=0", "--run_name", "one", cwd=tmp_path,
          FAKE_CUDA_LOG=tmp_path / "log.json")
    sites = [site for _, site in statistics(tmp_path / "log.json")["waits"]]
    assert sites and all(sites)
    assert any("libdsv3.so dsv3::save_parameters" in frame for site in sites for frame in site)


def test_operators_are_those_with_a_cuda_kernel():
    """The operators match those that the wheel's CUDA library registers, where that library can be loaded."""
    site_packages = next(pathlib.Path(sys.prefix).glob("lib/python3*/site-packages"))
    expected = {*cuda_ops.operators(site_packages), "copy_"}
    assert set(case("list_operators").stdout.split()) == expected
    real = subprocess.run([CASES, "list_operators"], text=True, capture_output=True, timeout=120)
    if real.returncode != 0:
        pytest.skip("LibTorch's CUDA library cannot be loaded: " + real.stderr.strip()[:200])
    assert set(real.stdout.split()) | {"copy_"} == expected


def test_the_driver_reports_the_gpu():
    """Calls the driver functions that dsv3 uses, through ctypes."""
    script = """
import ctypes
cuda, number, name, size = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.create_string_buffer(99), ctypes.c_size_t()
assert cuda.cuDeviceGetCount(ctypes.byref(number)) == 3
assert cuda.cuInit(0) == 0
cuda.cuDeviceGetCount(ctypes.byref(number)); print(number.value)
cuda.cuDeviceGetName(name, 99, 1); print(name.value.decode())
cuda.cuDeviceTotalMem_v2(ctypes.byref(size), 0); print(size.value)
for attribute in (75, 76): cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, 0); print(number.value)
print(cuda.cuDeviceGetName(name, 99, 2))
"""
    settings = environment(FAKE_CUDA_COUNT=3, CUDA_VISIBLE_DEVICES="2,0", FAKE_CUDA_NAME="Test", FAKE_CUDA_MEMORY=1024,
                           FAKE_CUDA_CAPABILITY="8.6")
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, env={
        **settings, "LD_PRELOAD": "", "LD_LIBRARY_PATH": str(LIBRARIES)})
    assert done.stdout.split() == ["2", "Test", "1024", "8", "6", "101"], done.stderr
