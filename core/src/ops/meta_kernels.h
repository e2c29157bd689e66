// Kernels for meta tensors where LibTorch has none.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace dsv3 {

/// LibTorch registers kernels for meta tensors in C++ for most operators, but only in Python for
/// others, such as relu. While this object exists, those operators run on zeros on the CPU, and
/// their results are meta tensors. They allocate what they compute, one operator at a time.
class MetaKernels {
 public:
  MetaKernels();

 private:
  std::vector<c10::RegistrationHandleRAII> registered_;
};

}  // namespace dsv3
