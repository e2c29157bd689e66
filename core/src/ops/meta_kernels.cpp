#include "ops/meta_kernels.h"

#include <algorithm>
#include <array>

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

namespace dsv3 {
namespace {

using c10::DispatchKey;

at::Tensor zeros_like_on_cpu(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_meta()) return tensor;
  return at::zeros_like(tensor, tensor.options().device(at::kCPU));
}

at::Tensor without_data(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.is_meta()) return tensor;
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kMeta));
}

/// Applies `change` to the tensors in an argument or result.
template <class Change>
c10::IValue changed(const c10::IValue& value, const Change& change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    std::vector<at::Tensor> tensors;
    for (const at::Tensor& tensor : value.toTensorVector()) tensors.push_back(change(tensor));
    return tensors;
  }
  if (value.isDevice() && value.toDevice().is_meta()) return at::Device(at::kCPU);
  return value;
}

/// Runs an operator of meta tensors on the CPU. An argument that the operator writes to and returns
/// is returned itself.
void run_on_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  const size_t count = schema.arguments().size();
  const std::vector<c10::IValue> arguments(stack->end() - ptrdiff_t(count), stack->end());
  stack->resize(stack->size() - count);
  for (const c10::IValue& argument : arguments)
    stack->push_back(changed(argument, zeros_like_on_cpu));
  op.callBoxed(stack);
  const size_t first = stack->size() - schema.returns().size();
  for (size_t i = 0; i < schema.returns().size(); ++i) {
    c10::IValue& result = (*stack)[first + i];
    result = changed(result, without_data);
    const c10::AliasInfo* alias = schema.returns()[i].alias_info();
    for (size_t j = 0; alias && alias->isWrite() && j < count; ++j)
      if (const c10::AliasInfo* other = schema.arguments()[j].alias_info();
          other && *other == *alias)
        result = arguments[j];
  }
}

/// Operators whose result or its size depends on values, which meta tensors do not have.
constexpr std::array kDependOnValues{"aten::_local_scalar_dense",
                                     "aten::equal",
                                     "aten::masked_select",
                                     "aten::nonzero",
                                     "aten::_unique2",
                                     "aten::bincount"};

bool needs_kernel(const c10::OperatorHandle& op) {
  if (std::ranges::find(kDependOnValues, op.operator_name().name) != kDependOnValues.end())
    return false;
  return op.hasSchema() && op.hasKernelForDispatchKey(DispatchKey::CPU) &&
         !op.hasKernelForDispatchKey(DispatchKey::Meta);
}

}  // namespace

MetaKernels::MetaKernels() {
  c10::Dispatcher& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    const std::optional<c10::OperatorHandle> op = dispatcher.findOp(name);
    if (!op || !needs_kernel(*op)) continue;
    registered_.push_back(dispatcher.registerImpl(
        name, DispatchKey::Meta, c10::KernelFunction::makeFromBoxedFunction<&run_on_cpu>(),
        std::nullopt, nullptr, "dsv3 kernels for meta tensors"));
  }
}

}  // namespace dsv3
