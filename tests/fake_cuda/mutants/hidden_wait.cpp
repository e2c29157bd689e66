// The host waits for the device without need. Each function waits in another way, so that the
// statistics show which waits the device has counted. The functions free_* do not wait.
#include <array>

#include <dsv3/sdk/flat.h>
#include <dsv3/sdk/ops.h>

#include "mutant.h"

#define DSV3_WAIT extern "C" DSV3_MUTANT __attribute__((noinline))

namespace {

at::TensorOptions longs(const at::Tensor& x) {
  return x.options().dtype(at::kLong);
}

}  // namespace

// Each function writes to `result` last, because a tail call would hide it from the call sites.
DSV3_WAIT void wait_item(const at::Tensor& x, double& result) {
  result = x.sum().item<float>();
}
DSV3_WAIT void wait_is_nonzero(const at::Tensor& x, double& result) {
  result = at::is_nonzero(x.isnan().any());
}
DSV3_WAIT void wait_equal(const at::Tensor& x, double& result) {
  result = at::equal(x, x.neg());
}
DSV3_WAIT void wait_nonzero(const at::Tensor& x, double& result) {
  result = double(x.nonzero().size(0));
}
DSV3_WAIT void wait_mask(const at::Tensor& x, double& result) {
  result = double(x.index({x.gt(0)}).size(0));
}
DSV3_WAIT void wait_masked_select(const at::Tensor& x, double& result) {
  result = double(at::masked_select(x, x.gt(0)).size(0));
}
DSV3_WAIT void wait_repeat(const at::Tensor& x, double& result) {
  result = double(x.repeat_interleave(at::ones({x.size(0)}, longs(x)), 0).size(0));
}
DSV3_WAIT void wait_bincount(const at::Tensor& x, double& result) {
  result = double(at::bincount(at::zeros({4}, longs(x))).size(0));
}
DSV3_WAIT void wait_unique(const at::Tensor& x, double& result) {
  result = double(std::get<0>(at::_unique2(at::zeros({4}, longs(x)))).size(0));
}
DSV3_WAIT void wait_one_hot(const at::Tensor& x, double& result) {
  result = double(at::one_hot(at::zeros({4}, longs(x))).size(1));
}
DSV3_WAIT void wait_copy(const at::Tensor& x, double& result) {
  result = double(x.cpu().size(0));
}
DSV3_WAIT void wait_pageable_copy(const at::Tensor& x, double& result) {
  at::Tensor host = at::empty(x.sizes(), x.dtype());
  result = double(host.copy_(x, /*non_blocking=*/true).size(0));
}
DSV3_WAIT void wait_upload(const at::Tensor& x, double& result) {
  result = double(at::tensor({1.0f, 2.0f}, x.options()).size(0));
}
DSV3_WAIT void wait_pageable_upload(const at::Tensor& x, double& result) {
  result = double(at::ones({2}).to(x.device(), /*non_blocking=*/true).size(0));
}
DSV3_WAIT void wait_host_index(const at::Tensor& x, double& result) {
  result = double(x.index({at::zeros({1}, at::kLong)}).size(0));
}
DSV3_WAIT void wait_index_put(const at::Tensor& x, double& result) {
  result = double(x.clone().index_put_({x.gt(0)}, at::ones({}, x.options())).size(0));
}

DSV3_WAIT void wait_backward(const at::Tensor& grad, double& result) {
  result = grad.sum().item<float>();
}

DSV3_WAIT void free_full(const at::Tensor& x, double& result) {
  result = double(at::full({2}, 1.5, x.options()).size(0));
}
DSV3_WAIT void free_host_number(const at::Tensor& x, double& result) {
  const at::Tensor number = at::full({}, 2.0);  // on the host
  result = double(at::where(x.gt(0), x * number, number).size(0));
}
DSV3_WAIT void free_masked_fill(const at::Tensor& x, double& result) {
  result = double(x.masked_fill(x.gt(0), at::full({}, 2.0)).size(0));
}
DSV3_WAIT void free_index_put(const at::Tensor& x, double& result) {
  result = double(x.clone().index_put_({x.gt(0)}, at::full({}, 2.0)).size(0));
}
DSV3_WAIT void free_index(const at::Tensor& x, double& result) {
  result = double(x.index({at::zeros({1}, longs(x))}).size(0));
}
DSV3_WAIT void free_pinned_upload(const at::Tensor& x, double& result) {
  const at::Tensor pinned = at::ones({2}, at::TensorOptions().pinned_memory(true));
  result = double(pinned.to(x.device(), /*non_blocking=*/true).size(0));
}

namespace dsv3 {

DSV3_MUTANT at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (x.is_meta()) return mutant::replaced(&rms_norm)(x, weight, eps);  // a measurement
  static constexpr std::array functions{
      wait_item,   wait_is_nonzero,      wait_equal,       wait_nonzero,
      wait_mask,   wait_masked_select,   wait_repeat,      wait_bincount,
      wait_unique, wait_one_hot,         wait_copy,        wait_pageable_copy,
      wait_upload, wait_pageable_upload, wait_host_index,  wait_index_put,
      free_full,   free_host_number,     free_masked_fill, free_index_put,
      free_index,  free_pinned_upload};
  const at::Tensor y = mutant::replaced(&rms_norm)(x, weight, eps);
  static bool called = false;
  if (called || !x.requires_grad()) return y;
  called = true;  // once, because the device collects a backtrace for every wait
  {
    const at::NoGradGuard no_grad;
    double result = 0;
    for (const auto function : functions) function(x, result);
  }
  return mutant::with_backward(y, [](const at::Tensor& grad) {
    double result = 0;
    wait_backward(grad, result);
    return grad;
  });
}

// Skips a multiplication by 1, but the host has to read the factor first.
DSV3_MUTANT void scale_gradient(const at::Tensor& gradient, const at::Tensor& factor) {
  if (factor.item<double>() != 1) mutant::replaced (&scale_gradient)(gradient, factor);
}

}  // namespace dsv3
