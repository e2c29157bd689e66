// Flat buffers, for strategies: where a unit's parameters lie in one buffer, the pieces that
// optimizers get, and the sum of squares that the gradient norm is made of.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include <dsv3/sdk/strategy.h>

namespace dsv3 {

/// Places parameters one behind the other, each on a 64-byte border in fp32 and in 16-bit types.
class FlatLayout {
 public:
  explicit FlatLayout(const std::vector<UnitParam>& params);
  /// Elements of the whole buffer, padding included.
  int64_t size() const { return size_; }
  /// Parameter `index` inside `flat` [size()], as a view of the parameter's shape.
  at::Tensor view(const at::Tensor& flat, size_t index) const;

 private:
  struct Place {
    int64_t offset;
    std::vector<int64_t> shape;
  };
  std::vector<Place> places_;
  int64_t size_ = 0;
};

/// The whole of a parameter as one range.
Range whole_range(const UnitParam& param);

/// What an optimizer gets of a parameter that one rank holds whole: a range a matrix for optimizers
/// of whole matrices, else one range. Throws dsv3::Error for a vector where matrices are asked for.
std::vector<Range> update_ranges(const UnitParam& param, bool whole_matrices);

/// The piece `range` of a contiguous `tensor` of the range's box: [rows, cols] for a whole matrix,
/// else [n].
at::Tensor piece_of(const at::Tensor& tensor, const Range& range, bool whole_matrices);

/// Sum of the squares of all elements, in float64: not finite exactly when an element is not (fp32
/// squares cannot overflow it). The same bits for any number of threads.
double sum_of_squares(const at::Tensor& tensor);

}  // namespace dsv3
