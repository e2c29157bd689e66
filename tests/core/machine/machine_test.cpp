#include "machine/machine.h"

#include <cstdlib>

#include <ATen/Context.h>
#include <catch2/catch.hpp>

#include "run/gpu_provenance.h"

namespace {

const at::Device kGpu(at::kCUDA, 0);

}  // namespace

TEST_CASE("peak FLOP/s are looked up by GPU name, with or without form factor and memory size") {
  const std::vector<std::pair<const char*, double>> peaks{
      {"NVIDIA H100 80GB HBM3", 989},
      {"NVIDIA H100 PCIe", 756},
      {"NVIDIA H100 NVL", 835},
      {"NVIDIA H200", 989},
      {"NVIDIA H20", 148},
      {"NVIDIA H800", 989},
      {"NVIDIA GH200 480GB", 989},
      {"NVIDIA GH200 144G HBM3e", 989},
      {"NVIDIA B200", 2250},
      {"NVIDIA B300 SXM6 AC", 2250},
      {"NVIDIA GB200", 2500},
      {"NVIDIA A100-SXM4-80GB", 312},
      {"NVIDIA A100 80GB PCIe", 312},
      {"NVIDIA A100-PCIE-40GB", 312},
      {"A100-SXM4-40GB", 312},
      {"NVIDIA A800-SXM4-80GB", 312},
      {"NVIDIA A10", 125},
      {"NVIDIA A40", 149.7},
      {"NVIDIA L4", 121},
      {"NVIDIA L40", 181},
      {"NVIDIA L40S", 362},
      {"NVIDIA RTX A6000", 154.8},
      {"NVIDIA RTX 6000 Ada Generation", 364.2},
      {"NVIDIA GeForce RTX 3090", 71},
      {"NVIDIA GeForce RTX 4090", 165.2},
      {"NVIDIA GeForce RTX 5090", 209.5},
      {"NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 503.8},
      {"NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", 438.9},
      {"Tesla T4", 65},
      {"Tesla V100-SXM2-16GB", 125},
      {"Tesla V100S-PCIE-32GB", 130}};
  for (const auto& [name, tflops] : peaks) {
    INFO(name);
    CHECK(dsv3::peak_flops_of(name) == Approx(tflops * 1e12));
  }
}

TEST_CASE(
    "peak FLOP/s are unknown (0) for an unlisted GPU, even if its name resembles a listed one") {
  for (const char* name :
       {"", "NVIDIA", "NVIDIA A10G", "NVIDIA A1000", "NVIDIA A16", "NVIDIA T400 4GB", "NVIDIA T4G",
        "NVIDIA RTX A4000", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5090 Laptop GPU", "NVIDIA GeForce RTX 4080", "Quadro RTX 6000",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "GRID A100-40C", "NVIDIA A100X", "NVIDIA H200 PCIe",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition", "Tesla V100-FHHL-16GB"}) {
    INFO(name);
    CHECK(dsv3::peak_flops_of(name) == 0);
  }
}

TEST_CASE(
    "train.deterministic enables LibTorch's deterministic algorithms on a GPU but not on a CPU") {
  at::Context& context = at::globalContext();
  dsv3::TrainOptions train;
  REQUIRE_FALSE(train.deterministic);
  dsv3::choose_determinism(train, kGpu);
  CHECK_FALSE(context.deterministicAlgorithms());
  train.deterministic = true;
  dsv3::choose_determinism(train, at::kCPU);
  CHECK_FALSE(context.deterministicAlgorithms());
  CHECK(context.userEnabledCuDNNSDP());

  unsetenv("CUBLAS_WORKSPACE_CONFIG");
  dsv3::choose_determinism(train, kGpu);
  CHECK(context.deterministicAlgorithms());
  CHECK_FALSE(context.deterministicAlgorithmsWarnOnly());
  CHECK(context.deterministicCuDNN());
  CHECK_FALSE(context.userEnabledCuDNNSDP());
  CHECK(std::string(std::getenv("CUBLAS_WORKSPACE_CONFIG")) == ":4096:8");
  setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8", 1);
  dsv3::choose_determinism(train, kGpu);
  CHECK(std::string(std::getenv("CUBLAS_WORKSPACE_CONFIG")) == ":16:8");

  context.setDeterministicAlgorithms(false, false);
  context.setDeterministicFillUninitializedMemory(true);
  context.setDeterministicCuDNN(false);
  context.setSDPUseCuDNN(true);
  unsetenv("CUBLAS_WORKSPACE_CONFIG");
}

TEST_CASE("on a CPU, the peak-memory metric is the resident memory of the process") {
  CHECK(dsv3::peak_memory_bytes(at::kCPU) > 1'000'000);
}

TEST_CASE("CUDA and driver versions are formatted as strings") {
  CHECK(dsv3::cuda_version_text(13000) == "13.0");
  CHECK(dsv3::cuda_version_text(12040) == "12.4");
  CHECK(dsv3::driver_version_in("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  "
                                "580.82.07  Release Build  (dvs-builder@U22)\nGCC version:  gcc") ==
        "580.82.07");
  CHECK(dsv3::driver_version_in("NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57  Wed") ==
        "575.57");
  CHECK(dsv3::driver_version_in("").is_null());
}

TEST_CASE("GPU provenance contains null for properties that cannot be determined") {
  const dsv3::Json gpu = dsv3::gpu_provenance(at::Device(at::kCUDA, 100));
  CHECK(gpu["name"].is_null());
  CHECK(gpu["memory_bytes"].is_null());
  CHECK(gpu["index"] == 100);
  CHECK(gpu["tf32"]["matmul"] == false);
  CHECK(gpu["deterministic"] == false);
  for (const char* key : {"capability", "driver", "cuda", "cudnn", "nccl"})
    CHECK(gpu.contains(key));
}
