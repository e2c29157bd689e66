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
};

}  // namespace dsv3
