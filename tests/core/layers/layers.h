// Helpers for layer tests: they build components by name without loading plugin libraries, and
// compare tensors.
#pragma once

#include <ATen/ATen.h>

#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/options.h>
#include <dsv3/sdk/position.h>

namespace test {

using dsv3::OptionValues;

std::shared_ptr<dsv3::Position> make_position(const std::string& name, const OptionValues& values,
                                              int64_t rotary_dim, int64_t sequence = 16);
std::shared_ptr<dsv3::Attention> make_attention(const std::string& name, const OptionValues& values,
                                                const dsv3::LayerContext& context);
std::shared_ptr<dsv3::FeedForward> make_feed_forward(const std::string& name,
                                                     const OptionValues& values,
                                                     const dsv3::LayerContext& context);
/// The first error message from the component's option checks, or "" if they pass.
std::string option_conflict(const std::string& name, const OptionValues& values);

/// A layer context with width `hidden`, RoPE and a new parameter store.
dsv3::LayerContext context(int64_t hidden, at::ScalarType dtype = at::kDouble,
                           at::Device device = at::kCPU);

/// Fills the store's parameters with reproducible random values around 0 (around 1 for norms).
void fill(dsv3::ParameterStore& store, uint64_t seed = 1);

/// The parameter or buffer named `name`.
at::Tensor parameter(const dsv3::ParameterStore& store, const std::string& name);
at::Tensor buffer(const dsv3::ParameterStore& store, const std::string& name);

/// Reproducible normally distributed values, drawn without torch's global generator.
at::Tensor normal(at::IntArrayRef sizes, uint64_t seed, at::ScalarType dtype = at::kDouble);

/// A training micro-batch with `batch` rows, each containing one document of `length` tokens.
dsv3::Sequence sequence(int64_t batch, int64_t length);

/// The largest difference, relative to the largest value in `expected`.
double difference(const at::Tensor& actual, const at::Tensor& expected);

/// Gradients of sum(y * direction) with respect to `inputs`. The default direction is a fixed
/// pseudo-random tensor.
std::vector<at::Tensor> gradients(const at::Tensor& y, const std::vector<at::Tensor>& inputs,
                                  const at::Tensor& direction = {});

/// Compares the gradients of sum(function() * fixed values) with central differences, at `samples`
/// to 2 * `samples` elements of each input, or at all elements of a smaller one. Returns the
/// largest difference, relative to the largest gradient. Inputs must be float64.
double gradient_error(const std::function<at::Tensor()>& function,
                      const std::vector<at::Tensor>& inputs, int64_t samples = 40);

/// Enables the reference operators during its lifetime.
struct ReferenceOps {
  ReferenceOps() { dsv3::use_reference_ops(true); }
  ~ReferenceOps() { dsv3::use_reference_ops(false); }
};

}  // namespace test
