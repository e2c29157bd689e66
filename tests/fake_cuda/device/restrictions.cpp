#include "restrictions.h"

#include <map>

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>

namespace fake_cuda {
namespace {

bool is_floating(const c10::IValue& value) {
  return value.isTensor() && value.toTensor().defined() &&
         at::isFloatingType(value.toTensor().scalar_type());
}

bool is_defined(const c10::IValue& value) {
  return value.isTensor() && value.toTensor().defined();
}

/// The operators without a deterministic CUDA kernel, by the name that LibTorch reports.
std::string nondeterministic_kernel(const std::string& base,
                                    const std::vector<c10::IValue>& arguments) {
  static const std::map<std::string, std::string> always{
      {"aten::nll_loss2d_forward", "nll_loss2d_forward_out_cuda_template"},
      {"aten::nll_loss2d_backward", "nll_loss2d_backward_out_cuda_template"}};
  if (const auto found = always.find(base); found != always.end()) return found->second;
  if (base == "aten::histc" && is_floating(arguments[0]))
    return "_histc_cuda with floating point input";
  if (base == "aten::bincount" && is_defined(arguments[1])) return "_bincount_cuda";
  if (base == "aten::median" && arguments.size() > 1) return "median CUDA with indices output";
  return {};
}

}  // namespace

void check_restrictions(const std::string& name, const std::vector<c10::IValue>& arguments) {
  const std::string base = name.substr(0, name.find('.'));
  // By the name that LibTorch reports.
  static const std::map<std::string, std::string> products{{"aten::mm", "addmm_cuda"},
                                                           {"aten::addmm", "addmm_cuda"},
                                                           {"aten::addmm_", "addmm_cuda"},
                                                           {"aten::bmm", "baddbmm_cuda"},
                                                           {"aten::baddbmm", "baddbmm_cuda"},
                                                           {"aten::baddbmm_", "baddbmm_cuda"},
                                                           {"aten::addmv", "addmv_impl_cuda"},
                                                           {"aten::addmv_", "addmv_impl_cuda"},
                                                           {"aten::dot", "dot"}};
  if (const auto product = products.find(base); product != products.end())
    TORCH_CHECK(is_floating(arguments[0]) || arguments[0].toTensor().is_complex(), "\"",
                product->second, "\" not implemented for '", arguments[0].toTensor().scalar_type(),
                "'");
  if (const std::string kernel = nondeterministic_kernel(base, arguments); !kernel.empty())
    at::globalContext().alertNotDeterministic(kernel);
}

void reject_untestable(const std::string& operation) {
  C10_THROW_ERROR(NotImplementedError,
                  "not testable on the fake device: " + operation +
                      " (it has a CUDA kernel, but neither a CPU kernel nor a twin; "
                      "tests/fake_cuda/README.md explains how to add one)");
}

}  // namespace fake_cuda
