// Convolutions, whose CUDA kernels have other names than the CPU's, and recurrent networks, which
// have no twin.
#include <array>
#include <vector>

#include <ATen/native/RNN.h>
#include <ATen/ops/convolution.h>
#include <torch/library.h>

#include "restrictions.h"
#include "statistics.h"
#include "twins.h"

namespace fake_cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct Convolution {
  const char* name;
  at::IntArrayRef stride, padding, dilation;
  int64_t groups;
  bool transposed = false;
  at::IntArrayRef output_padding = {};
};

Tensor convolve(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                const Convolution& c) {
  for (const Tensor& tensor : {input, weight, bias.value_or(Tensor())})
    TORCH_CHECK(!tensor.defined() || tensor.is_cuda(),
                "Expected all tensors to be on the same device, but found at least two devices, "
                "cuda:0 and cpu! (",
                c.name, ")");
  TORCH_CHECK(
      at::isFloatingType(input.scalar_type()) && input.scalar_type() == weight.scalar_type(), "\"",
      c.name, "\" not implemented for '", input.scalar_type(), "' and '", weight.scalar_type(),
      "'");
  const std::vector<int64_t> none(c.stride.size(), 0);
  const OptionalTensor host_bias = bias ? OptionalTensor(twin(*bias)) : std::nullopt;
  const Tensor out = to_device(at::convolution(
      twin(input), twin(weight), host_bias, c.stride, c.padding, c.dilation, c.transposed,
      c.transposed ? c.output_padding : at::IntArrayRef(none), c.groups));
  count_operator(std::string("aten::") + c.name, {input, weight}, {out});
  return out;
}

Tensor cudnn(const Tensor& input, const Tensor& weight, at::IntArrayRef padding,
             at::IntArrayRef stride, at::IntArrayRef dilation, int64_t groups, bool, bool, bool) {
  return convolve(input, weight, {}, {"cudnn_convolution", stride, padding, dilation, groups});
}

Tensor cudnn_transpose(const Tensor& input, const Tensor& weight, at::IntArrayRef padding,
                       at::IntArrayRef output_padding, at::IntArrayRef stride,
                       at::IntArrayRef dilation, int64_t groups, bool, bool, bool) {
  return convolve(
      input, weight, {},
      {"cudnn_convolution_transpose", stride, padding, dilation, groups, true, output_padding});
}

Tensor depthwise2d(const Tensor& input, const Tensor& weight, at::IntArrayRef,
                   const OptionalTensor& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                   at::IntArrayRef dilation) {
  return convolve(input, weight, bias,
                  {"_conv_depthwise2d", stride, padding, dilation, input.size(1)});
}

Tensor depthwise3d(const Tensor& input, const Tensor& weight, at::IntArrayRef,
                   const OptionalTensor& bias, at::IntArrayRef stride, at::IntArrayRef padding,
                   at::IntArrayRef dilation) {
  return convolve(input, weight, bias,
                  {"conv_depthwise3d", stride, padding, dilation, input.size(1)});
}

constexpr char kGru[] = "aten::gru", kLstm[] = "aten::lstm", kRnn[] = "aten::rnn";

template <const char* name, class... Arguments>
void untestable(Arguments...) {
  reject_untestable(name);
}

const struct SetRecurrent {
  SetRecurrent() {
    using namespace at::native;
    gru_cudnn_stub.set_cuda_dispatch_ptr(&untestable<kGru>);
    gru_packed_cudnn_stub.set_cuda_dispatch_ptr(&untestable<kGru>);
    lstm_cudnn_stub.set_cuda_dispatch_ptr(&untestable<kLstm>);
    lstm_packed_cudnn_stub.set_cuda_dispatch_ptr(&untestable<kLstm>);
    rnn_tanh_cudnn_stub.set_cuda_dispatch_ptr(&untestable<kRnn>);
    rnn_tanh_packed_cudnn_stub.set_cuda_dispatch_ptr(&untestable<kRnn>);
    rnn_relu_cudnn_stub.set_cuda_dispatch_ptr(&untestable<kRnn>);
    rnn_relu_packed_cudnn_stub.set_cuda_dispatch_ptr(&untestable<kRnn>);
  }
} set_recurrent;

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("cudnn_convolution", &cudnn);
  library.impl("cudnn_convolution_transpose", &cudnn_transpose);
  library.impl("_conv_depthwise2d", &depthwise2d);
  library.impl("conv_depthwise3d", &depthwise3d);
}

}  // namespace fake_cuda
