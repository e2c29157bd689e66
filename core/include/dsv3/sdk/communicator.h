// Collective operations between the ranks of a run, without c10d's headers.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// A collective operation that was started and may still run. It uses the operation's tensors until
/// wait() returns.
class Work {
 public:
  virtual ~Work();
  /// Returns when the result may be used: on a CPU when it is complete, on a GPU when the current
  /// stream waits for it. Throws dsv3::Error with ExitCode::peer_lost if a peer is lost. Call it
  /// once.
  virtual void wait() = 0;
};

/// A group of ranks. All calls are collective: every rank in the group makes the same calls with
/// equal sizes and dtypes, in the same order, from one thread at a time. Sums are computed in fp32
/// (float64 and integers: in their own dtype) and in rank order, so they do not depend on how a
/// tensor is cut into operations, and are bit-identical on all ranks. Tensors must be contiguous
/// and on the group's device.
class Communicator {
 public:
  virtual ~Communicator();
  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;
  virtual at::Device device() const = 0;  ///< of all tensors

  /// Sends part i of `input` to rank i and receives its part in `output`, in rank order. The sizes
  /// are numbers of elements of dimension 0, one for each rank; empty = equal parts.
  virtual std::unique_ptr<Work> start_all_to_all(at::Tensor output, at::Tensor input,
                                                 std::vector<int64_t> output_sizes = {},
                                                 std::vector<int64_t> input_sizes = {}) = 0;
  /// Concatenates the ranks' `input` in `output`, which has size() times as many elements. `input`
  /// may be this rank's part of `output`.
  virtual std::unique_ptr<Work> start_all_gather(at::Tensor output, at::Tensor input) = 0;
  /// Copies `root`'s tensor to every rank in place.
  virtual std::unique_ptr<Work> start_broadcast(at::Tensor tensor, int64_t root) = 0;
  /// Returns a communicator for some of the ranks, in this order, with its own order of operations;
  /// null on a rank that is not one of them. Collective over this group, also for other ranks.
  virtual std::shared_ptr<Communicator> subgroup(std::span<const int64_t> ranks) = 0;

  /// Sums `input` over the ranks, and leaves this rank's part of the sum in `output`, which has
  /// 1 / size() as many elements and may be that part of `input`.
  std::unique_ptr<Work> start_reduce_scatter_sum(at::Tensor output, at::Tensor input);
  /// Sums `tensor` over the ranks in place.
  void all_reduce_sum(at::Tensor& tensor);
  /// Takes the element-wise maximum over the ranks in place.
  void all_reduce_max(at::Tensor& tensor);
  void broadcast(at::Tensor& tensor, int64_t root);
  void barrier();

 private:
  /// The ranks' tensors, stacked.
  at::Tensor gathered(const at::Tensor& tensor);
};

/// Returns a communicator whose only rank is this process.
std::shared_ptr<Communicator> local_communicator();

}  // namespace dsv3
