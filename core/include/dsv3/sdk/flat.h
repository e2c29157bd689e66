// Flat buffers for strategies: the layout of several parameters in one buffer, the slices of
// parameters passed to optimizers, and the sum of squares for the gradient norm.
#pragma once

#include <dsv3/sdk/strategy.h>

namespace dsv3 {

/// Lays out parameters one after another, each aligned to at least 64 bytes in fp32 and in 16-bit
/// types.
class FlatLayout {
 public:
  explicit FlatLayout(const std::vector<UnitParam>& params);
  /// Number of elements in the whole buffer, including padding.
  int64_t size() const { return size_; }
  /// Returns parameter `index` in `flat` [size()], as a view with the parameter's shape. Returns an
  /// undefined tensor if `flat` is undefined.
  at::Tensor view(const at::Tensor& flat, size_t index) const;

 private:
  struct Place {
    int64_t offset;
    std::vector<int64_t> shape;
  };
  std::vector<Place> places_;
  int64_t size_ = 0;
};

/// Returns a range that covers a whole parameter.
Range whole_range(const UnitParam& param);

/// Returns the ranges that an optimizer receives for a parameter that is not sharded: one range per
/// matrix for optimizers that need whole matrices, else a single range. Throws dsv3::Error if the
/// parameter cannot be split into its matrices.
std::vector<Range> update_ranges(const UnitParam& param, bool whole_matrices);

/// Returns elements range.begin to range.end of `tensor`, as [rows, cols] if `whole_matrices` (a
/// vector as [1, n]), else as [n]. `tensor` is contiguous and has the shape range.box_shape.
/// Returns an undefined tensor if `tensor` is undefined, as gradients may be between steps.
at::Tensor piece_of(const at::Tensor& tensor, const Range& range, bool whole_matrices);

/// Returns the norm of all elements of `tensors`, as a float64 scalar on their device. Finite if
/// and only if all elements are, because squares of fp32 values cannot overflow float64.
/// Bit-identical for any number of threads. Undefined tensors are ignored. Does not wait for a GPU.
at::Tensor norm_of(at::TensorList tensors, at::Device device);

/// Implements Strategy::scale_grads for one fp32 tensor.
void scale_gradient(const at::Tensor& gradient, const at::Tensor& factor);

}  // namespace dsv3
