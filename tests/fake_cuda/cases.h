// Helpers for cases, and the cases of dsv3's operators.
#pragma once

#include <cstdio>
#include <map>
#include <string>

#include <ATen/ATen.h>

#define CASE(name) \
  { #name, &name }

namespace fake_cuda_cases {

using at::Tensor;

/// Runs dsv3's operators on the device and prints the differences from the host.
extern const std::map<std::string, void (*)()> kOperators;

inline at::TensorOptions cuda(at::ScalarType dtype = at::kFloat) {
  return at::TensorOptions().device(at::kCUDA).dtype(dtype);
}

/// Deterministic values in [-1, 1], on the host.
inline Tensor values(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat, double phase = 0) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return (at::arange(count, at::kFloat) * 0.7 + phase).sin().view(sizes).to(dtype);
}

inline void print(double value) {
  std::printf("%.9g\n", value);
}

/// Prints the largest absolute difference between a result on the device and the same result on the
/// host.
inline void print_difference(const Tensor& device, const Tensor& host) {
  print((device.cpu().to(at::kFloat) - host.to(at::kFloat)).abs().max().item<double>());
}

}  // namespace fake_cuda_cases
