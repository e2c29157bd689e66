// Finds the module or parameter in which a step's values became NaN or infinite.
#include <ATen/ATen.h>

#include <dsv3/sdk/log.h>

#include "call/checked.h"
#include "ranks/exchange.h"
#include "train/step.h"

namespace dsv3 {
namespace {

bool finite(const at::Tensor& tensor) {
  return !tensor.is_floating_point() || at::isfinite(tensor.detach()).all().item<bool>();
}

bool finite(at::TensorList tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [](const auto& t) { return finite(t); });
}

/// Finds the first module that returns a non-finite value in the forward or backward pass.
class FirstModule final : public Watch {
 public:
  void passed(const std::string& name, at::TensorList inputs, at::TensorList outputs) override {
    if (found_.empty() && !finite(outputs)) found_ = "output of " + name;
    // The backward pass computes the gradient of the output first.
    check_gradients(outputs, "gradient of the output of " + name);
    check_gradients(inputs, "gradient of the input of " + name);
  }
  const std::string& found() const { return found_; }

 private:
  void check_gradients(at::TensorList tensors, const std::string& what) {
    for (const at::Tensor& tensor : tensors)
      if (tensor.requires_grad())
        tensor.register_hook([this, what](const at::Tensor& gradient) {
          if (found_.empty() && !finite(gradient)) found_ = what;
        });
  }

  std::string found_;
};

std::string first_module(Model& model, Strategy& strategy, std::span<const Batch> batches,
                         const LossScale& scale, std::vector<PassContext> passes, bool backward) {
  FirstModule first;
  for (PassContext& pass : passes) {
    pass.recompute = true;
    pass.metrics = {};
  }
  {
    const at::NoGradGuard no_grad;
    for (size_t m = 0; m < batches.size(); ++m) model.loss(batches[m], scale, passes[m]);
  }
  for (size_t m = 0; backward && first.found().empty() && m < batches.size(); ++m) {
    call(strategy, "begin_microbatch", &Strategy::begin_microbatch, m + 1 == batches.size());
    checked::backward(strategy, {model.loss(batches[m], scale, passes[m]).total});
  }
  return first.found();
}

/// Finds the non-finite parameter that was declared last, because the backward pass computes its
/// gradient first.
class FirstParameter {
 public:
  explicit FirstParameter(const ParameterStore& store) {
    for (const Parameter& parameter : store.parameters())
      order_.emplace(parameter.name, order_.size());
  }
  void check(const std::string& name, const at::Tensor& tensor) {
    if ((found_.empty() || order_.at(name) > order_.at(found_)) && !finite(tensor)) found_ = name;
  }
  const std::string& found() const { return found_; }

 private:
  std::map<std::string, size_t> order_;
  std::string found_;
};

}  // namespace

namespace {

/// The causes that ranks found, as one sentence.
std::string joined(const std::vector<std::string>& causes) {
  if (causes.size() == 1) return causes.front();
  std::string text;
  for (size_t rank = 0; rank < causes.size(); ++rank)
    if (!causes[rank].empty())
      text += (text.empty() ? "" : "; ") + ("rank " + std::to_string(rank) + ": ") + causes[rank];
  return text;
}

}  // namespace

std::string find_not_finite(Communicator& control, Model& model, Strategy& strategy,
                            const OptimizerSet& optimizers, std::span<const Batch> batches,
                            const LossScale& scale, const std::vector<PassContext>& passes,
                            bool backward, bool updated) {
  // train.not_finite=skip checks each step before it updates the parameters.
  constexpr const char* kUnchanged =
      "; to search with the parameters of the step, start the run with train.not_finite=skip";
  std::string text;
  const auto add = [&text](const std::string& part) { text += (text.empty() ? "" : "; ") + part; };
  try {
    FirstParameter value(model.store()), gradient(model.store());
    for (const OwnedTensor& owned : checked::owned(strategy))
      value.check(owned.range.name, owned.value);
    if (!value.found().empty())
      add("parameter " + value.found() +
          (updated ? " is not finite" : " was not finite before the step") + "; it is updated by " +
          optimizers.owner_of(value.found()));
    if (updated && is_true_on_any(control, !value.found().empty())) {
      const std::string found = joined(gather_texts(control, text));
      return found +
             "; the step cannot be repeated, because the parameters have been updated since" +
             kUnchanged;
    }
    const std::string module = first_module(model, strategy, batches, scale, passes, backward);
    for (size_t group = 0; group < optimizers.specs().size(); ++group)
      checked::update(strategy, static_cast<int>(group), [&](std::span<UpdateTensor> tensors) {
        for (const UpdateTensor& tensor : tensors) gradient.check(tensor.range.name, tensor.grad);
      });
    if (!module.empty()) add("first non-finite value: " + module);
    if (!gradient.found().empty())
      add("first non-finite parameter gradient in backward order: " + gradient.found());
    text = joined(gather_texts(control, text));
    if (updated)
      text = text.empty() ? "everything is finite when the step is repeated with parameters that "
                            "have been updated since" +
                                std::string(kUnchanged)
                          : "repeated with parameters that have been updated since: " + text;
  } catch (const std::exception& error) {
    log::debug(std::string("the search for non-finite values failed: ") + error.what());
  }
  return text;
}

}  // namespace dsv3
