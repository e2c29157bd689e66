#include "conformance/device.h"

#include <algorithm>
#include <cmath>

#include <ATen/record_function.h>

#include <dsv3/sdk/packing.h>

#include "conformance/fake_device.h"

namespace dsv3::conformance {
namespace {

/// Whether an operator with a bf16 or fp16 argument was called in computes_in_half().
thread_local bool saw_half = false;

std::unique_ptr<at::ObserverContext> look_for_half(const at::RecordFunction& function) {
  const auto look_at = [](const at::Tensor& tensor) {
    saw_half |= tensor.defined() && at::isReducedFloatingType(tensor.scalar_type());
  };
  for (const c10::IValue& input : function.inputs()) {
    if (input.isTensor()) look_at(input.toTensor());
    if (input.isTensorList()) std::ranges::for_each(input.toTensorVector(), look_at);
  }
  return nullptr;
}

}  // namespace

void device_check(const AddCheck& check, void (*run)(const Subject&)) {
  check(kDeviceCheck, "gives the same results on a GPU as on the CPU", run);
}

NamedTensors gradients_of(const at::Tensor& y, const NamedTensors& inputs) {
  const std::vector<at::Tensor> values = gradients(y, inputs);
  NamedTensors all;
  for (size_t i = 0; i < inputs.size(); ++i)
    all.emplace_back("the gradient of " + inputs[i].first, values[i]);
  return all;
}

double device_bound(at::ScalarType dtype) {
  return dtype == at::kFloat ? 1e-5 : 0.1;
}

const char* precision_name(at::ScalarType dtype) {
  return dtype == at::kFloat ? "fp32" : "bf16";
}

void require_same_on_device(const Computed& actual, const Computed& expected, at::Device device,
                            at::ScalarType dtype, const std::string& input) {
  const double bound = device_bound(dtype);
  const auto compare = [&](const NamedTensors& a, const NamedTensors& e, double smallest) {
    require(a.size() == e.size(), "it computes ", a.size(), " tensors on ", device, ", but ",
            e.size(), " on the CPU");
    for (size_t i = 0; i < e.size(); ++i) {
      const double worst = difference(a[i].second, e[i].second, smallest);
      require(worst <= bound, e[i].first, " on ", device, " (", precision_name(dtype), input,
              ") differs from that on the CPU by ", worst,
              " (relative to the largest value); at most ", bound, " is allowed",
              std::isinf(worst) ? nan_hint() : "");
    }
  };
  compare(actual.results, expected.results, 1e-30);
  double steepest = 1e-29;
  for (const auto& [name, gradient] : expected.gradients)
    steepest = std::max(steepest, largest(gradient));
  compare(actual.gradients, expected.gradients, steepest / 10);
}

bool computes_in_half(const std::function<void()>& body) {
  saw_half = false;
  const at::CallbackHandle handle =
      at::addThreadLocalCallback(at::RecordFunctionCallback(&look_for_half)
                                     .needsInputs(true)
                                     .scopes({at::RecordScope::FUNCTION}));
  const std::shared_ptr<void> removal(nullptr, [=](void*) { at::removeCallback(handle); });
  body();
  return saw_half;
}

Sequence to_device(Sequence seq, at::Device device) {
  seq.positions = seq.positions.to(device);
  if (seq.document_ids.defined()) seq.document_ids = seq.document_ids.to(device);
  if (seq.packing)
    seq.packing = std::make_shared<Packing>(seq.document_ids, seq.packing->boundaries().to(device),
                                            seq.packing->longest());
  return seq;
}

}  // namespace dsv3::conformance
