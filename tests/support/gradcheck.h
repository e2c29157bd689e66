// Compares autograd's gradients with central differences, in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace dsv3::test {

using TensorFunction = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

/// Returns the largest |autograd - difference| / (1 + |difference|) over all elements of all inputs
/// that require a gradient. Weights `fn`'s outputs with fixed random numbers, so that every element
/// counts. Expect less than 1e-6 for smooth functions of inputs around 1. Inputs must be float64;
/// they are modified and restored.
inline double gradcheck(const TensorFunction& fn, const std::vector<at::Tensor>& inputs,
                        double step = 1e-6) {
  std::vector<at::Tensor> weights;
  const auto value = [&] {
    at::Tensor sum = at::zeros({}, at::kDouble);
    const std::vector<at::Tensor> outputs = fn(inputs);
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!outputs[i].defined() || !at::isFloatingType(outputs[i].scalar_type())) continue;
      if (weights.size() <= i) weights.resize(i + 1);
      if (!weights[i].defined()) {
        // frac(i * sqrt(2)) gives varied weights without advancing torch's global generator.
        at::Tensor index = at::arange(outputs[i].numel(), at::kDouble) + double(i + 1);
        weights[i] = ((index * std::sqrt(2.0)).frac() - 0.3).view(outputs[i].sizes());
      }
      sum = sum + (outputs[i] * weights[i]).sum();
    }
    return sum;
  };
  for (const at::Tensor& input : inputs) input.mutable_grad() = at::Tensor();
  torch::autograd::backward({value()}, {});

  double worst = 0;
  const at::NoGradGuard no_grad;
  for (const at::Tensor& input : inputs) {
    if (!input.requires_grad()) continue;
    TORCH_CHECK(input.scalar_type() == at::kDouble && input.is_contiguous(),
                "gradcheck requires contiguous float64 inputs");
    const at::Tensor grad =
        input.grad().defined() ? input.grad().contiguous() : at::zeros_like(input);
    double* data = input.data_ptr<double>();
    for (int64_t i = 0; i < input.numel(); ++i) {
      const double original = data[i];
      data[i] = original + step;
      const double above = value().item<double>();
      data[i] = original - step;
      const double below = value().item<double>();
      data[i] = original;
      const double difference = (above - below) / (2 * step);
      const double error =
          std::abs(grad.data_ptr<double>()[i] - difference) / (1 + std::abs(difference));
      worst = std::isnan(error) ? HUGE_VAL : std::max(worst, error);
    }
  }
  return worst;
}

}  // namespace dsv3::test
