// Interface for feed-forward plugins, dense or mixture of experts.
#pragma once

#include <dsv3/sdk/attention.h>

namespace dsv3 {

class FeedForward : public Component {
 public:
  using Component::Component;
  ~FeedForward() override;
  /// x and the result are [B, T, D].
  virtual at::Tensor forward(const at::Tensor& x, const Sequence& seq) = 0;
  /// Number of values per token that the forward pass saves for the backward pass, for memory
  /// estimates.
  virtual int64_t saved_values_per_token() const = 0;
};

}  // namespace dsv3
