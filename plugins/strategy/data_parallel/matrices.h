// Updates of whole matrices, each by one rank that owns it.
#pragma once

#include <functional>

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

/// Assigns each matrix an owner, so that the ranks have about the same work: the most expensive
/// matrices first, each to the rank with the least work so far. `work` is indexed by rank of the
/// run.
void assign_owners(std::vector<Matrix>& matrices, std::vector<double>& work);

using UpdateFunction = std::function<void(std::span<UpdateTensor>)>;

/// Updates matrices that have the same replicas, in the model's order. Collective over them: the
/// ranks send gradients and values to the owners, which call `fn` and send the new values back, in
/// rounds of limited size. The next round's gradients and the previous round's values move while
/// `fn` runs.
class MatrixUpdate {
 public:
  MatrixUpdate(std::span<const Matrix> matrices, at::Device device);
  void run(const UpdateFunction& fn);

 private:
  using Round = std::vector<const Matrix*>;
  /// An operation that moves pieces of matrices, and its buffers.
  struct Exchange {
    at::Tensor input, output;
    std::unique_ptr<Work> work;
  };

  void make_rounds();
  bool is_owned(const Matrix& matrix) const { return matrix.owner == place_->index; }
  Range part_of(const Matrix& matrix, int64_t replica) const;
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
