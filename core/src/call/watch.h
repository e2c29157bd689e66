// Lets the search for the first module with non-finite values see what every module returns.
#pragma once

#include <atomic>
#include <string>

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// Of the whole process: a recomputed forward runs on autograd's thread.
class Watch {
 public:
  Watch() { active = this; }
  virtual ~Watch() { active = nullptr; }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  /// `name`: "layers.3.feed_forward (feed_forward 'moe', nano.yaml:9:5)".
  virtual void passed(const std::string& name, at::TensorList inputs, at::TensorList outputs) = 0;

  /// The one that lives; null in every normal step.
  static std::atomic<Watch*> active;
};

}  // namespace dsv3
