// Updates of whole matrices, each by one rank that owns it.
#pragma once

#include <functional>
#include <map>

#include "segment.h"

namespace dsv3::data_parallel {

/// A matrix (or vector) whose optimizer needs all of its elements at once.
struct Matrix {
  const Segment* segment = nullptr;
  size_t param = 0;
  Range range;
  int64_t owner = 0;  ///< index in Place::replicas

  int64_t size() const { return range.end - range.begin; }
};

/// All matrices of an optimizer group, by UnitParam::shards.
using Matrices = std::map<int64_t, std::vector<Matrix>>;

/// Returns the matrices of each group. Their owners are chosen so that the ranks have about the
/// same work: the most expensive matrices first, each to the rank with the least work so far.
std::vector<Matrices> find_matrices(const std::vector<const Segment*>& segments,
                                    const std::vector<GroupSpec>& groups, int64_t ranks);

/// What an update of matrices needs on this rank, in bytes.
struct MatrixCost {
  int64_t peak = 0;  ///< of buffers on the device
  int64_t sent = 0;
};

using UpdateFunction = std::function<void(std::span<UpdateTensor>)>;

/// Updates matrices that have the same replicas, in the model's order. Collective over them: the
/// ranks send gradients and values to the owners, which call `fn` and send the new values back, in
/// rounds of limited size. The next round's gradients and the previous round's values move while
/// `fn` runs.
class MatrixUpdate {
 public:
  MatrixUpdate(std::span<const Matrix> matrices, at::Device device);
  void run(const UpdateFunction& fn);
  /// With gradients. The segments need not have adopted their parameters.
  MatrixCost cost() const;

 private:
  using Round = std::vector<const Matrix*>;
  /// Elements that an operation sends to and receives from each replica.
  struct Sizes {
    std::vector<int64_t> sent, received;
    int64_t bytes() const;
  };
  /// An operation that moves pieces of matrices, and its buffers.
  struct Exchange {
    at::Tensor input, output;
    std::unique_ptr<Work> work;
  };

  void make_rounds();
  bool is_owned(const Matrix& matrix) const { return matrix.owner == place_->index; }
  Sizes sizes_of_inputs(const Round& round, int64_t copies) const;
  Sizes sizes_of_results(const Round& round) const;
  int64_t assembled_bytes(const Round& round) const;
  static Exchange allocate(const Sizes& sizes, at::Device device);
  Exchange start_inputs(const Round& round) const;
  std::vector<UpdateTensor> tensors_of(const Round& round, Exchange& inputs) const;
  Exchange start_results(const Round& round, std::span<const UpdateTensor> updated) const;
  void finish_results(const Round& round, Exchange& results) const;

  std::span<const Matrix> matrices_;
  const Place* place_ = nullptr;
  at::Device device_;
  std::vector<Round> rounds_;
  bool has_gradients_ = false;
};

}  // namespace dsv3::data_parallel
