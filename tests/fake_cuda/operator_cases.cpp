// Cases that run dsv3's operators on the device and on the host.
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/packing.h>
#include <dsv3/sdk/random.h>

#include "cases.h"
#include "ranks/recorded_metrics.h"

namespace fake_cuda_cases {
namespace {

constexpr int64_t kBatch = 2, kLength = 150, kHeads = 4, kKeyHeads = 2, kDim = 16;
const dsv3::StepKey kKey{.seed = uint64_t{1} << 63 | 5, .step = 70000, .first_row = 9, .layer = 3};

/// Prints the differences of uniform numbers on the device from those on the host. They must be 0.
void draw_uniform() {
  const std::vector<int64_t> sizes{3, 70, 5};
  for (const int64_t stream : {0, 1, -1}) {
    const Tensor host = dsv3::uniform(kKey, sizes, at::kCPU, stream);
    print_difference(dsv3::uniform(kKey, sizes, at::Device(at::kCUDA, 0), stream), host);
    std::printf("%d\n", host.min().item<float>() == host.max().item<float>());
  }
}

void drop_out() {
  dsv3::Sequence seq;
  seq.training = true;
  seq.key = kKey;
  const Tensor x = values({3, 70, 5}, at::kBFloat16);
  print_difference(dsv3::dropout(x.to(at::kCUDA), 0.4, seq), dsv3::dropout(x, 0.4, seq));
}

Tensor document_ids() {
  Tensor ids = at::zeros({kBatch, kLength}, at::kLong);
  ids[0].narrow(0, 40, 110).fill_(1);
  ids[1].narrow(0, 7, 60).fill_(1);
  ids[1].narrow(0, 67, 83).fill_(2);
  return ids;
}

std::shared_ptr<const dsv3::Packing> packing_on(at::Device device) {
  const auto host = dsv3::packing_of(document_ids());
  return std::make_shared<const dsv3::Packing>(document_ids().to(device),
                                               host->boundaries().to(device), host->longest());
}

struct Options {
  std::optional<int64_t> window;
  bool sinks = false;
  double softcap = 0;
  bool packed = false;
  bool metrics = false;
  at::ScalarType dtype = at::kBFloat16;
};

/// Prints the differences between attention on the device and in float64 on the host: the result
/// and the gradients of q, k, v and sinks.
void attend(const Options& options) {
  const auto run = [&](at::Device device, at::ScalarType dtype) {
    const auto input = [&](at::IntArrayRef sizes, double phase) {
      return values(sizes, options.dtype, phase).to(device).to(dtype).set_requires_grad(true);
    };
    std::vector<Tensor> in{input({kBatch, kLength, kHeads, kDim}, 0),
                           input({kBatch, kLength, kKeyHeads, kDim}, 1),
                           input({kBatch, kLength, kKeyHeads, 8}, 2)};
    if (options.sinks) in.push_back(input({kHeads}, 3));
    dsv3::Sequence seq;
    if (options.packed) seq.packing = packing_on(device);
    const auto sink = std::make_shared<dsv3::MetricSink>();
    if (options.metrics) sink->open();
    seq.metrics = dsv3::Metrics(sink);
    const Tensor out = dsv3::attend(in[0], in[1], in[2], seq,
                                    {.scale = 2.0,
                                     .window = options.window,
                                     .sinks = options.sinks ? in[3] : Tensor(),
                                     .softcap = options.softcap});
    torch::autograd::backward({out}, {values(out.sizes(), options.dtype, 4).to(device).to(dtype)});
    std::vector<Tensor> results{out.detach()};
    for (const Tensor& x : in) results.push_back(x.grad());
    if (options.metrics) results.push_back(take_metrics(*sink, {}, device).values);
    return results;
  };
  const auto device = run(at::Device(at::kCUDA, 0), options.dtype),
             host = run(at::kCPU, at::kDouble);
  for (size_t i = 0; i < device.size(); ++i) {
    const double largest = host[i].abs().max().item<double>();
    print_difference(device[i].cpu().to(at::kDouble) / largest, host[i] / largest);
  }
}

void attend_window() {
  attend({.window = 30});
}
void attend_window_packed() {
  attend({.window = 30, .packed = true});
}
void attend_sinks() {
  attend({.sinks = true});
}
void attend_sinks_packed() {
  attend({.window = 30, .sinks = true, .packed = true});
}
void attend_softcap() {
  attend({.window = 30, .sinks = true, .softcap = 1.5});
}
void attend_softcap_packed() {
  attend({.window = 30, .sinks = true, .softcap = 1.5, .packed = true});
}
void attend_fp32_packed() {
  attend({.window = 30, .sinks = true, .packed = true, .dtype = at::kFloat});
}
void attend_with_metrics() {
  attend({.window = 30, .packed = true, .metrics = true});
}

/// Runs attention with metrics on the device, without reading a result.
void attend_without_waiting() {
  const Tensor x = at::ones({kBatch, kLength, kHeads, kDim}, cuda(at::kBFloat16));
  const Tensor boundaries =
      at::arange(0, kBatch * kLength + 1, 75, cuda(at::kInt));  // four documents
  dsv3::Sequence seq;
  seq.packing = std::make_shared<const dsv3::Packing>(
      at::arange(4, cuda(at::kLong)).repeat_interleave(75, 0, 300).view({kBatch, kLength}),
      boundaries, 75);
  const auto sink = std::make_shared<dsv3::MetricSink>();
  sink->open();
  seq.metrics = dsv3::Metrics(sink);
  for (const double softcap : {0.0, 2.0})
    dsv3::attend(x, x, x, seq,
                 {.window = 9, .sinks = at::ones({kHeads}, cuda()), .softcap = softcap});
  take_metrics(*sink, {}, x.device());
}

}  // namespace

const std::map<std::string, void (*)()> kOperators{
    CASE(draw_uniform),           CASE(drop_out),
    CASE(attend_window),          CASE(attend_window_packed),
    CASE(attend_sinks),           CASE(attend_sinks_packed),
    CASE(attend_softcap),         CASE(attend_softcap_packed),
    CASE(attend_fp32_packed),     CASE(attend_with_metrics),
    CASE(attend_without_waiting),
};

}  // namespace fake_cuda_cases
