// Reference attention in fp32, on host tensors.
#pragma once

#include <tuple>

#include <ATen/core/Tensor.h>

namespace fake_cuda {

/// Arguments of an attention call, which computes softmax(query key^T scale + bias) value for each
/// batch and head.
struct Attention {
  at::Tensor query;     ///< [batch, heads, tokens, dim]
  at::Tensor key;       ///< [batch, key heads, keys, dim]; heads is a multiple of key heads
  at::Tensor value;     ///< [batch, key heads, keys, value dim]
  at::Tensor bias;      ///< broadcasts to [batch, heads, tokens, keys]; undefined = none
  bool causal = false;  ///< token i attends to keys 0 to i, or to i + keys - tokens if
                        ///< `bottom_right`
  bool bottom_right = false;
  double scale = 1;
  int64_t left = -1;  ///< number of keys before a token's own key that it attends to; -1 = all
};

/// Returns the output [batch, heads, tokens, value dim] in the query's dtype, and the log-sum-exp
/// of the scores [batch, heads, tokens] in fp32.
std::tuple<at::Tensor, at::Tensor> forward(const Attention& attention);

/// Returns the gradients of query, key and value, each in its tensor's dtype. `gradient` is the
/// gradient of the output.
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const Attention& attention,
                                                        const at::Tensor& gradient);
/// Like the flash kernel, computes the weights from the log-sum-exp `lse`, and the gradient of the
/// softmax from the output `out`. The caller may have changed both.
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const Attention& attention,
                                                        const at::Tensor& gradient,
                                                        const at::Tensor& out,
                                                        const at::Tensor& lse);

}  // namespace fake_cuda
