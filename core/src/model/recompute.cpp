#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <dsv3/sdk/error.h>

#include "call/backward.h"
#include "model/parts.h"

namespace dsv3 {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

struct RecomputeBackward final : torch::autograd::Node {
  Recomputable fn;
  std::vector<SavedVariable> saved;

  variable_list apply(variable_list&& grads) override {
    if (!fn) throw Error("the backward pass of a recomputed block ran twice");
    Tensors inputs;
    for (const SavedVariable& variable : saved) {
      const at::Tensor original = variable.unpack();
      inputs.push_back(original.detach().set_requires_grad(original.requires_grad()));
    }
    Tensors roots, root_grads;
    {
      const at::AutoGradMode with_grad(true);
      const Tensors outputs = fn(inputs, true);
      for (size_t i = 0; i < outputs.size(); ++i) {
        if (!outputs[i].requires_grad() || !grads[i].defined()) continue;
        roots.push_back(outputs[i]);
        root_grads.push_back(grads[i]);
      }
    }
    grads.clear();
    if (!roots.empty()) torch::autograd::backward(roots, root_grads);
    leave_backward();
    variable_list result;
    for (const at::Tensor& input : inputs) result.push_back(input.grad());
    return result;
  }
  void release_variables() override {
    saved.clear();
    fn = nullptr;
  }
  std::string name() const override { return "dsv3::RecomputeBackward"; }
};

}  // namespace

Tensors run_recomputed(Recomputable fn, const Tensors& inputs) {
  if (!at::GradMode::is_enabled()) return fn(inputs, false);
  Tensors outputs;
  {
    const at::NoGradGuard no_grad;
    outputs = fn(inputs, false);
  }
  // Always add a node, because fn's parameters may require gradients even if no input does.
  std::shared_ptr<RecomputeBackward> node(new RecomputeBackward, torch::autograd::deleteNode);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  for (const at::Tensor& input : inputs) node->saved.emplace_back(input, false);
  node->fn = std::move(fn);
  for (at::Tensor& output : outputs) {
    output = output.detach();  // fn may return one of its inputs
    const uint32_t slot = node->add_input_metadata(output);
    torch::autograd::impl::set_gradient_edge(output, {node, slot});
  }
  return outputs;
}

}  // namespace dsv3
