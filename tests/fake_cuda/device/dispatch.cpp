// Operators that have a CUDA kernel run their CPU kernel on twins of their arguments (host tensors
// that share the arguments' bytes). All other operators throw, as on a real GPU.
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "dry.h"
#include "indexing.h"
#include "memory.h"
#include "restrictions.h"
#include "statistics.h"
#include "twins.h"

namespace fake_cuda {
namespace {

using at::Tensor;
using Stack = torch::jit::Stack;
using Values = std::vector<c10::IValue>;

std::string name_of(const c10::OperatorHandle& operation) {
  const c10::OperatorName& name = operation.schema().operator_name();
  return name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
}

std::string base_of(const std::string& name) {
  return name.substr(0, name.find('.'));
}

/// Whether the CUDA implementation waits for the device, usually to learn the size of its result.
/// indexing.cpp counts the waits of index operators.
bool waits(const std::string& name, const Values& arguments) {
  static const std::set<std::string> always{"aten::nonzero",
                                            "aten::masked_select",
                                            "aten::_unique",
                                            "aten::_unique2",
                                            "aten::equal",
                                            "aten::unique_dim",
                                            "aten::unique_consecutive",
                                            "aten::bincount",
                                            "aten::histc",
                                            "aten::is_nonzero",
                                            "aten::unique_dim_consecutive"};
  const std::string base = base_of(name);
  if (always.contains(base)) return true;
  if (name == "aten::repeat_interleave.Tensor") return arguments.back().isNone();
  return false;
}

class Call {
 public:
  Call(const c10::OperatorHandle& operation, Stack* stack, bool checks_devices)
      : operation_(operation),
        stack_(stack),
        name_(name_of(operation)),
        checks_devices_(checks_devices) {
    const size_t count = operation.schema().arguments().size();
    arguments_.assign(stack->end() - std::ptrdiff_t(count), stack->end());
    torch::jit::drop(*stack, count);
  }

  void run() {
    check_index_devices(name_, arguments_);
    for (size_t i = 0; i < arguments_.size(); ++i)
      stack_->push_back(with_twins(arguments_[i], operation_.schema().arguments()[i]));
    const c10::OptionalDeviceGuard guard(device_);
    check_restrictions(name_, arguments_);
    if (waits(name_, arguments_)) count_wait(name_);
    count_index_waits(name_, arguments_);
    if (dry()) {
      run_dry(operation_, name_, arguments_, stack_);
    } else {
      if (!operation_.hasComputedKernelForDispatchKey(c10::DispatchKey::CPU))
        reject_untestable(name_);
      operation_.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack_);
    }
    const size_t count = operation_.schema().returns().size();
    Values results(stack_->end() - std::ptrdiff_t(count), stack_->end());
    torch::jit::drop(*stack_, count);
    for (c10::IValue& result : results) result = without_twins(result);
    if (generator_.defined()) generator_.set_state(host_generator_.get_state());
    count_operator(name_, arguments_, results);
    for (c10::IValue& result : results) stack_->push_back(std::move(result));
  }

 private:
  /// Whether CUDA accepts a tensor on the host as the argument `declared`. Kernels built on
  /// TensorIterator receive a tensor without dimensions as a number, by value. Other operators
  /// reject it if it is a positional or out= argument.
  bool accepts_host(const Tensor& tensor, const c10::Argument& declared) const {
    if (is_index_put(name_)) return true;  // checked by check_index_devices()
    const bool is_checked = checks_devices_ && (!declared.kwarg_only() || declared.is_out());
    return tensor.dim() == 0 && !is_checked;
  }

  Tensor twin_of(const Tensor& tensor, bool accepts_host) {
    if (tensor.defined() && tensor.is_cpu()) {
      TORCH_CHECK(accepts_host,
                  "Expected all tensors to be on the same device, but found at least two devices, "
                  "cuda:0 and cpu! (",
                  name_, ")");
      return dry() && tensor.dim() > 0 ? tensor.to(at::kMeta) : tensor;
    }
    if (tensor.defined() && tensor.is_cuda()) {
      if (!device_) device_ = tensor.device();
      TORCH_CHECK(*device_ == tensor.device(),
                  "Expected all tensors to be on the same device, but found at least two devices, ",
                  *device_, " and ", tensor.device(), "! (", name_, ")");
    }
    const Tensor host = twin(tensor);
    if (tensor.defined()) twins_.emplace_back(tensor, host);
    return host;
  }

  c10::IValue with_twins(const c10::IValue& value, const c10::Argument& declared) {
    if (value.isTensor()) {
      if (!value.toTensor().defined()) return value;
      return twin_of(value.toTensor(), accepts_host(value.toTensor(), declared));
    }
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& tensor : value.toTensorVector()) list.push_back(twin_of(tensor, false));
      return list;
    }
    if (value.isOptionalTensorList()) {
      const bool accepts_host_indices = is_index(name_) || is_index_put(name_);
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector())
        list.push_back(tensor ? std::optional(twin_of(*tensor, accepts_host_indices))
                              : std::nullopt);
      return list;
    }
    if (value.isDevice()) device_ = value.toDevice();
    if (value.isDevice()) return c10::Device(dry() ? at::kMeta : at::kCPU);
    if (value.isGenerator()) return generator_twin(value.toGenerator());
    return value;
  }

  /// Returns a generator on the host with the state of `generator`.
  c10::IValue generator_twin(const at::Generator& generator) {
    TORCH_CHECK(generator.device().is_cuda(),
                "Expected a 'cuda' device type for generator but found '",
                generator.device().type(), "'");
    if (dry()) return {};
    generator_ = generator;
    host_generator_ = at::make_generator<at::CPUGeneratorImpl>();
    host_generator_.set_state(generator.get_state());
    return host_generator_;
  }

  c10::IValue without_twins(const c10::IValue& value) {
    if (value.isTensor()) return device_tensor(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(device_tensor(tensor));
    return list;
  }

  /// Returns the device tensor for a kernel's result: an argument, a view of an argument, or a new
  /// tensor.
  Tensor device_tensor(const Tensor& result) {
    if (!result.defined()) return result;
    for (const auto& [tensor, host] : twins_) {
      if (result.is_same(host)) {
        adopt_size(tensor, host);
        return tensor;
      }
      if (result.numel() > 0 && result.is_alias_of(host)) return view_of(tensor, result);
    }
    return to_device(result);
  }

  /// Returns a view of `tensor` with the dtype, sizes and strides of `host`, which may view real
  /// numbers as complex ones or the reverse.
  static Tensor view_of(const Tensor& tensor, const Tensor& host) {
    const auto keys =
        tensor.key_set().remove(c10::DispatchKey::Conjugate).remove(c10::DispatchKey::Negative);
    auto impl = c10::make_intrusive<c10::TensorImpl>(
        c10::TensorImpl::VIEW, c10::Storage(tensor.storage()), keys, host.dtype());
    impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    if (host.is_conj()) impl->_set_conj(true);
    if (host.is_neg()) impl->_set_neg(true);
    return Tensor(std::move(impl));
  }

  /// If the kernel resized `host`, the twin of the argument `tensor`, resizes the argument as well.
  static void adopt_size(const Tensor& tensor, const Tensor& host) {
    if (host.sizes() == tensor.sizes() && host.strides() == tensor.strides()) return;
    const Tensor fresh = to_device(host);
    c10::TensorImpl* impl = tensor.unsafeGetTensorImpl();
    impl->set_storage_keep_dtype(fresh.storage());
    impl->set_sizes_and_strides(fresh.sizes(), fresh.strides(), 0);
  }

  const c10::OperatorHandle& operation_;
  Stack* stack_;
  std::string name_;
  bool checks_devices_;
  Values arguments_;
  std::optional<c10::Device> device_;             // of the results
  std::vector<std::pair<Tensor, Tensor>> twins_;  // device tensor, twin
  at::Generator generator_, host_generator_;      // an argument and its twin
};

template <bool checks_devices>
void run_on_twins(const c10::OperatorHandle& operation, Stack* stack) {
  Call(operation, stack, checks_devices).run();
}

void reject(const c10::OperatorHandle& operation, Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "Could not run '", operation.schema().operator_name(),
                              "' with arguments from the 'CUDA' backend: LibTorch has no CUDA "
                              "kernel for it");
}

/// An operator with a CUDA kernel, and whether LibTorch checks before the kernel that all tensors
/// are on the same device.
struct CudaOperator {
  const char* name;
  bool checks_devices;
};

/// Generated by cuda_ops.py, without the operators that other source files implement.
constexpr CudaOperator kCudaOperators[] = {
#define X(name, checks_devices) {name, checks_devices},
#include "cuda_ops.inc"
#undef X
};

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&reject>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  for (const auto& [name, checks_devices] : kCudaOperators)
    library.impl(name, checks_devices
                           ? torch::CppFunction::makeFromBoxedFunction<&run_on_twins<true>>()
                           : torch::CppFunction::makeFromBoxedFunction<&run_on_twins<false>>());
}

}  // namespace fake_cuda
