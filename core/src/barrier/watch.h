// A look at what every module hands on, for finding the first one whose numbers went bad.
#pragma once

#include <string>

#include <ATen/core/Tensor.h>

namespace dsv3::barrier {

class Watch {
 public:
  Watch();
  virtual ~Watch();
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  /// `name`: "layers.3.feed_forward (feed_forward 'moe', nano.yaml:9:5)".
  virtual void passed(const std::string& name, at::TensorList inputs, at::TensorList outputs) = 0;
};

/// The one that lives on this thread; null = nobody looks, as in all normal steps.
extern constinit thread_local Watch* watch;

}  // namespace dsv3::barrier
