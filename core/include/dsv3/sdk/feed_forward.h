// Interface for feed-forward plugins, dense or mixture of experts.
#pragma once

#include <dsv3/sdk/attention.h>

namespace dsv3 {

/// Passed to on_step_end() after an optimizer step that was not skipped.
struct StepEnd {
  at::Tensor counts;    ///< this layer's step_counts(), summed over micro-batches and ranks
  double progress = 0;  ///< step / total steps, in (0, 1]
};

class FeedForward : public Component {
 public:
  using Component::Component;
  ~FeedForward() override;
  /// x and the result are [B, T, D].
  virtual at::Tensor forward(const at::Tensor& x, const Sequence& seq) = 0;
  /// Returns int64 counts since the core last zeroed them, e.g. tokens per expert; undefined =
  /// none. Count only if seq.training and not seq.recompute. The core sums the counts of all layers
  /// over ranks in one call and zeroes them after every step.
  virtual at::Tensor step_counts() { return {}; }
  /// Returns the name of the metric max(step_counts()) / mean(step_counts()), e.g. "moe/load_max";
  /// empty = no metric. The core appends "/<layer>" to the name.
  virtual std::string load_metric() const { return {}; }
  /// Called after every optimizer step that was not skipped.
  virtual void on_step_end(const StepEnd&) {}
  /// Number of values per token that the forward pass saves for the backward pass, for memory
  /// estimates.
  virtual int64_t saved_values_per_token() const = 0;
};

}  // namespace dsv3
