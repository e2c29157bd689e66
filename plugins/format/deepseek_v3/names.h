// The tensor names in DeepSeek-V3's checkpoints, and the model parameters to which they correspond.
#pragma once

#include <vector>

#include <dsv3/sdk/format.h>

namespace deepseek_v3 {

/// The sizes of a model that this format supports.
struct Sizes {
  int64_t heads = 0, q_lora_rank = 0, kv_lora_rank = 0, nope = 0, rope = 0, v = 0;
  int64_t first_moe = 0;  ///< first layer that is not dense; the number of layers if all are dense
  int64_t dense_hidden = 0;                            ///< 0 if no layer is dense
  int64_t experts = 0, expert_hidden = 0, shared = 0;  ///< 0 if no layer has experts
};

/// All tensors in a checkpoint, including those of MTP modules.
std::vector<dsv3::TensorPlace> places(const dsv3::ModelDescription& model, const Sizes& sizes);

}  // namespace deepseek_v3
