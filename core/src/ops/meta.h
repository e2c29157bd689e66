// Operators on meta tensors, which have shapes but no data. A model on the meta device runs forward
// and backward passes of any size in milliseconds, so that FLOPs and memory can be measured without
// allocating anything (model/measure.h).
#pragma once

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// FLOPs of matrix products. A multiply-add counts as 2.
struct Flops {
  double all = 0;     ///< attention computes the scores of all pairs of tokens; with a window,
                      ///< those that its kernel computes
  double causal = 0;  ///< attention computes only the scores that the causal mask keeps

  Flops& operator+=(const Flops& other) {
    all += other.all;
    causal += other.causal;
    return *this;
  }
};

/// While this object exists, this thread's operators on meta tensors make the same allocations as
/// on `device`. Otherwise they use LibTorch's operators only.
class SimulatedDevice {
 public:
  explicit SimulatedDevice(at::DeviceType device);
  ~SimulatedDevice();
  SimulatedDevice(const SimulatedDevice&) = delete;
  SimulatedDevice& operator=(const SimulatedDevice&) = delete;
};

/// Whether operators on `tensor` run CPU kernels, or would on the simulated device.
bool on_cpu(const at::Tensor& tensor);
/// Whether operators on `tensor` run CUDA kernels, or would on the simulated device.
bool on_cuda(const at::Tensor& tensor);

/// While this object exists, it counts the FLOPs of matrix products and attention on meta tensors
/// in this thread, including those of backward passes.
class FlopCounter {
 public:
  FlopCounter();
  ~FlopCounter();
  FlopCounter(const FlopCounter&) = delete;
  FlopCounter& operator=(const FlopCounter&) = delete;
  const Flops& total() const { return total_; }

 private:
  Flops total_;
  uint64_t callback_;
};

}  // namespace dsv3
