// Attention as plain mathematics in fp32, on host tensors.
#pragma once

#include <tuple>

#include <ATen/core/Tensor.h>

namespace fake_cuda {

/// One attention call: softmax(query key^T scale + bias) value for each batch and head.
struct Attention {
  at::Tensor query;     ///< [batch, heads, tokens, dim]
  at::Tensor key;       ///< [batch, key heads, keys, dim]; key heads divides heads
  at::Tensor value;     ///< [batch, key heads, keys, value dim]
  at::Tensor bias;      ///< broadcasts to [batch, heads, tokens, keys]; undefined = none
  bool causal = false;  ///< token i sees the keys up to i + keys - tokens if `bottom_right`, else i
  bool bottom_right = false;
  double scale = 1;
};

/// The output [batch, heads, tokens, value dim] in the query's dtype, and the logarithm of the sum
/// of exponentials [batch, heads, tokens] in fp32.
std::tuple<at::Tensor, at::Tensor> forward(const Attention& attention);

/// The gradients of query, key and value, each in its own dtype, for the gradient of the output.
std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const Attention& attention,
                                                        const at::Tensor& gradient);

}  // namespace fake_cuda
