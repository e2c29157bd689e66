#include "cost.h"

#include <algorithm>

#include <ATen/core/Tensor.h>

namespace fake_cuda {
namespace {

// Rates that kernels reach on an H100 SXM, in bytes/s and FLOP/s. The GPU's peak rates are 3.35
// TB/s and, in bf16, 989 TFLOP/s.
constexpr double kBandwidth = 2.6e12;
constexpr double kMatrix = 700e12;
constexpr double kGrouped = 350e12;
constexpr double kAttention = 300e12;
constexpr double kFloat32 = 50e12;
constexpr double kLaunch = 2.5e-6;  // minimum seconds per kernel

double bytes_of(const c10::IValue& value) {
  double sum = 0;
  if (value.isTensor() && value.toTensor().defined()) {
    const at::Tensor& tensor = value.toTensor();
    int64_t elements = 1;  // an expanded dimension has stride 0 and is read only once
    for (int64_t d = 0; d < tensor.dim(); ++d)
      if (tensor.stride(d) != 0) elements *= tensor.size(d);
    sum = double(elements) * double(tensor.element_size());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) sum += bytes_of(tensor);
  }
  return sum;
}

bool is(const std::string& name, const std::string& operation) {
  return name == operation || name.starts_with(operation + ".");
}

struct Work {
  double flops = 0, rate = kMatrix;
};

double elements(const at::Tensor& tensor) {
  return double(tensor.numel());
}
double last(const at::Tensor& tensor) {
  return double(tensor.size(-1));
}

/// Returns the FLOPs of causal attention, which are half of those without a mask. `t` contains the
/// tensor arguments.
double attention_flops(const std::string& name, const std::vector<at::Tensor>& t,
                       const std::vector<c10::IValue>& arguments) {
  const bool backward = name.find("backward") != std::string::npos;
  const at::Tensor& query = t[backward ? 1 : 0];
  const at::Tensor& value = t[backward ? 3 : 2];
  const double factor = backward ? 2.5 : 1;
  if (name.find("_flash_attention_") != std::string::npos && !name.starts_with("aten::_scaled")) {
    // The query is [tokens, heads, dim] for packed rows of different lengths, or [batch, tokens,
    // heads, dim]. The row lengths are on the device, so this uses the longest row as an upper
    // bound for all rows.
    const double keys = double(arguments[backward ? 9 : 6].toInt());
    return factor * elements(query) / last(query) * keys * (last(query) + last(value));
  }
  return factor * elements(query) / last(query) * double(value.size(2)) *
         (last(query) + last(value));
}

Work work_of(const std::string& name, const std::vector<at::Tensor>& t,
             const std::vector<c10::IValue>& arguments) {
  Work work;
  if (is(name, "aten::mm") || is(name, "aten::bmm")) {
    work.flops = 2 * elements(t[0]) * last(t[1]);
  } else if (is(name, "aten::addmm") || is(name, "aten::addmm_") || is(name, "aten::baddbmm") ||
             is(name, "aten::baddbmm_")) {
    work.flops = 2 * elements(t[1]) * last(t[2]);
  } else if (is(name, "aten::_grouped_mm")) {
    // The operands are [rows, k] and [groups, k, n], or [m, rows] and [rows, n] with the rows split
    // into groups.
    work = {2 * elements(t[0]) * last(t[1]), kGrouped};
  } else if (name.find("_attention_") != std::string::npos || name.ends_with("_attention")) {
    work = {attention_flops(name, t, arguments), kAttention};
  }
  if (work.flops > 0 && t[0].scalar_type() == at::kFloat) work.rate = kFloat32;
  return work;
}

}  // namespace

Cost cost_of(const std::string& name, const std::vector<c10::IValue>& arguments,
             const std::vector<c10::IValue>& results) {
  Cost cost;
  std::vector<at::Tensor> tensors;
  for (const c10::IValue& value : arguments) {
    cost.bytes += bytes_of(value);
    if (value.isTensor() && value.toTensor().defined()) tensors.push_back(value.toTensor());
  }
  for (const c10::IValue& value : results) cost.bytes += bytes_of(value);
  if (is(name, "aten::gather") || is(name, "aten::scatter_add") ||
      is(name, "aten::scatter_add_")) {  // these access only the indexed elements
    const double index = bytes_of(arguments[2]);
    const double accesses = is(name, "aten::gather") ? 2 : 3;
    cost.bytes = index + index / sizeof(int64_t) * double(tensors[0].element_size()) * accesses;
  }
  const Work work = work_of(name, tensors, arguments);
  cost.flops = work.flops;
  cost.seconds = std::max({cost.bytes / kBandwidth, work.flops / work.rate, kLaunch});
  return cost;
}

}  // namespace fake_cuda
