// Helpers for the check that a component computes the same on a GPU as on the CPU.
#pragma once

#include "conformance/fake_device.h"
#include "conformance/layers.h"

namespace dsv3::conformance {

/// Adds the check with the name kDeviceCheck. `run` compares the subject's device with the CPU.
void device_check(const AddCheck& check, void (*run)(const Subject&));

/// What a component computed on one device, with descriptions for error messages.
struct Computed {
  NamedTensors results, gradients;
};

/// Returns gradients(), with the descriptions of their inputs.
NamedTensors gradients_of(const at::Tensor& y, const NamedTensors& inputs);

/// Returns the largest difference() between a GPU and the CPU that is allowed when computing in
/// `dtype`. Sums are added in a different order, and in bf16 every intermediate value is rounded.
double device_bound(at::ScalarType dtype);
/// Returns "fp32" or "bf16".
const char* precision_name(at::ScalarType dtype);

/// Throws a Violation unless difference() is at most device_bound() for every result and gradient.
/// Gradients that are small compared with the largest one are compared with a tenth of that,
/// because they may be nothing but rounding errors. `input` describes the input.
void require_same_on_device(const Computed& actual, const Computed& expected, at::Device device,
                            at::ScalarType dtype, const std::string& input = "");

/// Whether `body` calls an operator on bf16 or fp16 tensors.
bool computes_in_half(const std::function<void()>& body);

/// Returns what a layer computes for fixed input values with the rows that `seq`, on the CPU,
/// describes.
template <class Layer>
Computed compute(const LayerUnderTest<Layer>& layer, const Sequence& seq) {
  const at::ScalarType dtype = layer.context.dtype;
  const at::Device device = layer.context.device;
  const at::Tensor x =
      normal({seq.positions.size(0), seq.positions.size(1), kHidden}, 50, dtype).to(device);
  x.requires_grad_();
  const Sequence on_device = to_device(seq, device);
  const at::Tensor y = [&] {
    const WaitRecorder recorder("forward");
    return layer(x, on_device);
  }();
  require_like(y, x.sizes(), dtype, "forward's result", device);
  Computed computed{{{"forward's result", y}}, gradients_of(y, layer.inputs(x))};
  if constexpr (std::is_same_v<Layer, FeedForward>) {
    // In bf16, rounding may route a token to another expert, which changes the counts.
    const at::Tensor counts = layer.layer->step_counts();
    if (!counts.defined() || dtype != at::kFloat) return computed;
    computed.results.emplace_back("step_counts()", counts.clone());
    layer.layer->on_step_end({counts.clone(), 0.5});
    for (const Buffer& buffer : layer.context.store->buffers())
      computed.results.emplace_back("buffer " + buffer.name + " after on_step_end()",
                                    buffer.tensor);
  }
  return computed;
}

/// Throws a Violation unless the layer computes the same on the subject's device as on the CPU, in
/// fp32 and in bf16, with one document per row and with packed documents.
template <class Layer>
void require_same_layer_on_device(const Subject& subject) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const bool several : {false, true}) {
      const Sequence seq = several ? packed(2, kLength, {5, 9}) : one_document(2, kLength);
      const Computed on_cpu = compute(LayerUnderTest<Layer>(subject, dtype), seq);
      const Computed on_gpu = compute(LayerUnderTest<Layer>(subject, dtype, subject.device), seq);
      require_same_on_device(on_gpu, on_cpu, subject.device, dtype,
                             several ? ", packed rows" : ", one document per row");
    }
}

}  // namespace dsv3::conformance
