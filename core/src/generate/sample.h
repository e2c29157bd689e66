// Text from a model: temperature and top-k sampling with each layer's cache.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <dsv3/runtime/model.h>

namespace dsv3 {

struct SampleOptions {
  int64_t tokens = 64;       ///< new ones at most
  double temperature = 0.8;  ///< 0 = always the likeliest token
  int64_t top_k = 50;        ///< 0 = all
  uint64_t seed = 0;         ///< same seed, same text; no global generator is touched
  int32_t stop_id = -1;      ///< ends the text; -1 = none
};

/// New ids after `prompt` (at least one id).
std::vector<int32_t> sample(Model& model, const std::vector<int32_t>& prompt,
                            const SampleOptions& options);

}  // namespace dsv3
