#include "train/evaluation_weights.h"

#include <exception>

#include <dsv3/sdk/log.h>

#include "call/checked.h"
#include "checkpoint/tensor_views.h"

namespace dsv3 {

EvaluationWeights::EvaluationWeights(Strategy& strategy, OptimizerSet& optimizers, int64_t updates)
    : strategy_(strategy), exceptions_(std::uncaught_exceptions()) {
  if (updates > 0) groups_ = optimizers.groups_with_evaluation_weights();
  if (groups_.empty()) return;
  const at::NoGradGuard no_grad;
  for (const int group : groups_)
    checked::exchange(strategy_, group, [&](std::span<UpdateTensor> tensors) {
      for (const UpdateTensor& tensor : tensors) {
        const at::Tensor weights = optimizers.evaluation_weights(group, tensor);
        training_[{tensor.range.name, tensor.range.begin}] = tensor.value.clone();
        tensor.value.copy_(weights);
      }
    });
  call(strategy_, "loaded", &Strategy::loaded);
}

EvaluationWeights::~EvaluationWeights() noexcept(false) {
  if (groups_.empty()) return;
  try {
    restore();
  } catch (const std::exception& error) {
    if (std::uncaught_exceptions() == exceptions_) throw;
    log::error(std::string("cannot restore the training weights: ") + error.what());
  }
}

void EvaluationWeights::restore() {
  const at::NoGradGuard no_grad;
  for (const int group : groups_)
    checked::exchange(strategy_, group, [&](std::span<UpdateTensor> tensors) {
      for (const UpdateTensor& tensor : tensors)
        tensor.value.copy_(training_.at({tensor.range.name, tensor.range.begin}));
    });
  call(strategy_, "loaded", &Strategy::loaded);
}

void save_evaluation_weights(Strategy& strategy, OptimizerSet& optimizers, int64_t updates,
                             CheckpointContent& content) {
  if (updates == 0 || optimizers.groups_with_evaluation_weights().empty()) return;
  const EvaluationWeights weights(strategy, optimizers, updates);
  for (const OwnedTensor& owned : checked::owned(strategy))
    if (optimizers.has_evaluation_weights(owned.range.name))
      // A copy, because on a CPU the view would point to the strategy's memory.
      add_range(content, "evaluation/", owned.range, owned.value.clone());
}

}  // namespace dsv3
