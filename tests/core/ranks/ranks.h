// Collects results of ranks that run as threads, because Catch2's assertions are not thread-safe.
#pragma once

#include <ATen/ATen.h>

#include <dsv3/runtime/rank_threads.h>

namespace dsv3::test {

/// Calls `f` on `ranks` ranks and returns their tensors, in rank order.
template <class F>
std::vector<at::Tensor> results_on(int64_t ranks, const F& f) {
  std::vector<at::Tensor> results(static_cast<size_t>(ranks));
  on_ranks(ranks, [&](const std::shared_ptr<Communicator>& world) {
    results[static_cast<size_t>(world->rank())] = f(*world);
  });
  return results;
}

/// Values that differ between ranks and whose sum depends on the order of additions.
inline at::Tensor values_of_rank(int64_t rank, int64_t count, at::ScalarType dtype = at::kFloat) {
  const at::Tensor i = at::arange(count, at::kDouble);
  return at::sin(i * 0.7 + double(rank) * 1.3).mul(at::exp(i.remainder(9) - 4)).to(dtype);
}

/// The sum over ranks as documented: in rank order, and in fp32 for 16-bit types.
inline at::Tensor expected_sum(int64_t ranks, int64_t count, at::ScalarType dtype) {
  const bool narrow = dtype == at::kBFloat16 || dtype == at::kHalf;
  at::Tensor sum = values_of_rank(0, count, dtype).to(narrow ? at::kFloat : dtype);
  for (int64_t rank = 1; rank < ranks; ++rank) sum = sum + values_of_rank(rank, count, dtype);
  return sum.to(dtype);
}

}  // namespace dsv3::test
