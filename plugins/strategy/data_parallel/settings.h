// What distinguishes the strategies of this library from each other.
#pragma once

#include <ATen/core/Tensor.h>

namespace dsv3::data_parallel {

struct Settings {
  std::string name;         ///< of the strategy, for messages
  int64_t shard_ranks = 0;  ///< ranks that share one copy of the state; 0 = all, 1 = no sharding
  bool shard_gradients = false, shard_parameters = false;  ///< besides optimizer state
  bool offload_optimizer = false, offload_parameters = false;
  bool reshard_after_forward = true;
  int64_t prefetch = 1;  ///< units gathered ahead of their use
  at::ScalarType reduce = at::kFloat;
  int64_t bucket_bytes = int64_t{25} << 20;  ///< of gradients that are reduced together
  bool fill_freed = false;  ///< fill freed parameters with NaN instead of freeing their memory
};

}  // namespace dsv3::data_parallel
