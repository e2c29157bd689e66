// Helpers for mutants. A mutant defines a function of libdsv3 with one error in it and is loaded
// before libdsv3, so that the program and its plugins call the mutant.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <functional>
#include <string>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <dsv3/sdk/error.h>

/// Exports a function. Mutants hide their other symbols, as plugins do.
#define DSV3_MUTANT __attribute__((visibility("default")))

namespace dsv3::mutant {

/// Returns the function of libdsv3 that the mutant's `function` replaces.
template <class Function>
Function* replaced(Function* function) {
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(function), &info);
  void* next = info.dli_sname ? dlsym(RTLD_NEXT, info.dli_sname) : nullptr;
  if (!next) throw Error("libdsv3 does not export the function that this mutant replaces");
  return reinterpret_cast<Function*>(next);
}

/// Returns the variant of the error to use, which the test passes in DSV3_MUTANT.
inline const std::string& variant() {
  static const std::string name = [] {
    const char* value = std::getenv("DSV3_MUTANT");
    return std::string(value ? value : "");
  }();
  return name;
}

/// Calls `body` and prints the first line of its error, as "NAME: MESSAGE", or "NAME: accepted".
inline void attempt(const std::string& name, const std::function<void()>& body) {
  std::string message = "accepted";
  try {
    body();
  } catch (const c10::Error& error) {
    message = error.what_without_backtrace();
  } catch (const std::exception& error) {
    message = error.what();
  }
  std::fprintf(stderr, "%s: %s\n", name.c_str(), message.substr(0, message.find('\n')).c_str());
}

using Backward = std::function<at::Tensor(const at::Tensor&)>;

struct MutantBackward final : torch::autograd::Node {
  Backward backward;

  torch::autograd::variable_list apply(torch::autograd::variable_list&& grads) override {
    return {backward(grads[0])};
  }
  std::string name() const override { return "dsv3::MutantBackward"; }
};

/// Returns `y`, whose gradient passes through `backward` in the backward pass.
inline at::Tensor with_backward(const at::Tensor& y, Backward backward) {
  if (!torch::autograd::compute_requires_grad(y)) return y;
  std::shared_ptr<MutantBackward> node(new MutantBackward, torch::autograd::deleteNode);
  node->backward = std::move(backward);
  node->set_next_edges(torch::autograd::collect_next_edges(y));
  at::Tensor result = y.detach();
  node->add_input_metadata(result);
  torch::autograd::impl::set_gradient_edge(result, {node, 0});
  return result;
}

}  // namespace dsv3::mutant
