// Collective operations between the ranks of a run, without c10d's headers.
#pragma once

#include <memory>

#include <ATen/core/Tensor.h>

namespace dsv3 {

/// A group of ranks. All calls are collective: every rank in the group makes them in the same
/// order. If a peer is lost, they throw dsv3::Error with ExitCode::peer_lost.
class Communicator {
 public:
  virtual ~Communicator();
  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;
  /// Sums `tensor` over the ranks in place, accumulating in fp32 or wider.
  virtual void all_reduce_sum(at::Tensor& tensor) = 0;
  /// Takes the element-wise maximum over the ranks in place.
  virtual void all_reduce_max(at::Tensor& tensor) = 0;
  /// Copies `root`'s tensor to every rank in place.
  virtual void broadcast(at::Tensor& tensor, int64_t root) = 0;
  virtual void barrier() = 0;
};

/// Returns a communicator whose only rank is this process.
std::shared_ptr<Communicator> local_communicator();

/// The rank groups that a layer may use; null = this type of parallelism is off.
struct ParallelContext {
  std::shared_ptr<Communicator> data, expert, tensor, context;
};

}  // namespace dsv3
