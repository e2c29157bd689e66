#include <ATen/ATen.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <dsv3/sdk/backward_hook.h>

namespace dsv3 {
namespace {

/// Passes gradients through unchanged.
struct HookNode final : torch::autograd::Node {
  std::function<void()> action;
  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    action();
    return std::move(grads);
  }
};

}  // namespace

bool on_backward(TensorRefs tensors, std::function<void()> action) {
  if (!at::GradMode::is_enabled()) return false;
  std::vector<at::Tensor*> references;
  torch::autograd::variable_list inputs;
  for (at::Tensor* tensor : tensors)
    if (tensor->defined() && tensor->requires_grad()) {
      references.push_back(tensor);
      inputs.push_back(*tensor);
    }
  if (references.empty()) return false;
  std::shared_ptr<HookNode> node(new HookNode, torch::autograd::deleteNode);
  node->action = std::move(action);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  for (at::Tensor* tensor : references) {
    *tensor = tensor->detach();
    const uint32_t slot = node->add_input_metadata(*tensor);
    torch::autograd::impl::set_gradient_edge(*tensor, {node, slot});
  }
  return true;
}

}  // namespace dsv3
