#include "dry.h"

#include <functional>
#include <map>
#include <optional>

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>

namespace fake_cuda {
namespace {

using Arguments = std::vector<c10::IValue>;

at::Tensor meta(at::IntArrayRef size, const at::Tensor& like) {
  return at::empty(size, like.options().device(at::kMeta));
}

at::Tensor index_select(const Arguments& in) {
  std::vector<int64_t> size = in[0].toTensor().sizes().vec();
  size[size_t(at::maybe_wrap_dim(in[1].toInt(), int64_t(size.size())))] = in[2].toTensor().numel();
  return meta(size, in[0].toTensor());
}

at::Tensor embedding_gradient(const Arguments& in) {
  const at::Tensor gradient = in[0].toTensor();
  return meta({in[2].toInt(), gradient.size(-1)}, gradient);
}

at::Tensor where(const Arguments& in) {
  const at::Tensor a = in[1].toTensor(), b = in[2].toTensor();
  const auto size = at::infer_size(at::infer_size(in[0].toTensor().sizes(), a.sizes()), b.sizes());
  return meta(size, a.dim() > 0 ? a : b);
}

at::Tensor scalar_like(const Arguments& in) {
  return meta({}, in[0].toTensor());
}

/// Returns the result of an operator whose Meta kernel LibTorch implements only in Python; nullopt
/// for all other operators.
std::optional<at::Tensor> result_by_rule(const std::string& name, const Arguments& in) {
  static const std::map<std::string, std::function<at::Tensor(const Arguments&)>> rules{
      {"aten::index_select", index_select}, {"aten::embedding_dense_backward", embedding_gradient},
      {"aten::where.self", where},          {"aten::max", scalar_like},
      {"aten::min", scalar_like},           {"aten::median", scalar_like},
  };
  const auto rule = rules.find(name);
  return rule == rules.end() ? std::nullopt : std::optional(rule->second(in));
}

bool changes_in_place(const c10::OperatorHandle& operation) {
  const std::string& name = operation.schema().operator_name().name;
  if (!name.ends_with('_')) return false;
  for (const c10::Argument& result : operation.schema().returns())
    if (!result.alias_info() || !result.alias_info()->isWrite()) return false;
  return true;
}

}  // namespace

void run_dry(const c10::OperatorHandle& operation, const std::string& name,
             const Arguments& arguments, torch::jit::Stack* stack) {
  const auto replace = [&](std::optional<c10::IValue> result) {
    torch::jit::drop(*stack, arguments.size());
    if (result) stack->push_back(std::move(*result));
  };
  if (const auto result = result_by_rule(name, arguments)) return replace(*result);
  if (changes_in_place(operation)) {
    const bool returns_self = !operation.schema().returns().empty();
    return replace(returns_self ? std::optional((*stack)[stack->size() - arguments.size()])
                                : std::nullopt);
  }
  if (name == "aten::abs.out") {  // this out= operator has no Meta kernel
    const at::Tensor out = stack->back().toTensor();
    out.resize_((*stack)[stack->size() - arguments.size()].toTensor().sizes());
    return replace(out);
  }
  operation.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), stack);
}

}  // namespace fake_cuda
