// Exchanges the weights that are trained with the optimizers' evaluation weights.
#pragma once

#include <dsv3/runtime/optimizer_set.h>

namespace dsv3 {

/// While this object exists, the strategy holds the evaluation weights of all optimizers that have
/// them (see Optimizer::evaluation_weights()), and copies of the training weights use as much
/// memory as their fp32 values. Does nothing if no optimizer has evaluation weights, or before the
/// first update. Use it only between steps. Construction and destruction are collective.
class EvaluationWeights {
 public:
  /// `updates` is the number of updates so far.
  EvaluationWeights(Strategy& strategy, OptimizerSet& optimizers, int64_t updates);
  /// Restores the training weights, bit for bit. Throws if the strategy does, except while another
  /// exception is handled.
  ~EvaluationWeights() noexcept(false);
  EvaluationWeights(const EvaluationWeights&) = delete;

 private:
  void restore();

  Strategy& strategy_;
  std::vector<int> groups_;  // those with evaluation weights
  int exceptions_;           // being handled when this object was constructed
  std::map<std::pair<std::string, int64_t>, at::Tensor>
      training_;  // by parameter and first element
};

/// Adds the evaluation weights that this rank stores as "evaluation/<parameter>", for parameters
/// whose optimizer has them. Adds nothing before the first update. Collective.
void save_evaluation_weights(Strategy& strategy, OptimizerSet& optimizers, int64_t updates,
                             CheckpointContent& content);

}  // namespace dsv3
