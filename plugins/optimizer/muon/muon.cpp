// Muon as defined by torch.optim.Muon, on batches of matrices with the same shape.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string_view>

#include <ATen/ATen.h>
#include <ATen/cpu/Utils.h>

#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/plugin.h>

#include "orthogonalise.h"

namespace {

struct MuonOptions {
  double lr = 0.02, momentum = 0.95, weight_decay = 0.1;
  bool nesterov = true;
  int64_t ns_steps = 5;
  std::string momentum_form = "ema", scale = "original", ns_dtype = "auto";
  static void describe(dsv3::OptionSchema<MuonOptions>& s) {
    s.add("lr", &MuonOptions::lr, "base learning rate, which the schedule scales").min(0);
    s.add("momentum", &MuonOptions::momentum, "momentum decay rate").min(0).max(1);
    // This option is a convention because implementations compute the update direction differently,
    // although the option name and the optimizer state are the same.
    s.add("nesterov", &MuonOptions::nesterov,
          "use Nesterov momentum: mix the current gradient into the update direction")
        .convention();
    s.add("weight_decay", &MuonOptions::weight_decay,
          "decoupled weight decay: weights shrink by lr * weight_decay per update")
        .min(0);
    s.add("ns_steps", &MuonOptions::ns_steps, "number of Newton-Schulz iterations").min(1).max(99);
    s.add("ns_dtype", &MuonOptions::ns_dtype,
          "dtype of the Newton-Schulz iterations; auto = bf16 on CUDA and on CPUs with AMX, else "
          "fp32")
        .choices({"auto", "bf16", "fp32"});
    s.add("scale", &MuonOptions::scale,
          "factor applied to the learning rate: original = sqrt(max(1, rows/cols)), "
          "match_rms_adamw = 0.2 sqrt(max(rows, cols)), spectral = sqrt(max(rows, cols))")
        .choices({"original", "match_rms_adamw", "spectral"})
        .convention();
    s.add("momentum_form", &MuonOptions::momentum_form,
          "how the gradient G updates the momentum buffer B; ema: B = momentum B + (1 - "
          "momentum) G, sum: B = momentum B + G")
        .choices({"ema", "sum"})
        .convention();
    s.metric("muon/orthogonality_error", "",
             "root mean square of s^2 - 1 over the singular values s of an update direction, mean "
             "over matrices");
    s.check([](const MuonOptions& o) { return o.momentum < 1 ? "" : "momentum must be below 1"; });
  }
};

/// Total size in bytes of the matrices to orthogonalise in one batch: enough to occupy a GPU, or
/// about the size of a CPU's caches.
int64_t workspace(const at::Device& device) {
  return device.is_cpu() ? int64_t(32) << 20 : int64_t(256) << 20;
}

/// Without AMX, oneDNN's bf16 matrix products are slower than its fp32 ones (1.6x in one
/// benchmark), even with AVX512-BF16.
bool bf16_is_faster(const at::Device& device) {
  if (!device.is_cpu()) return true;
  static const bool amx = [] {
    const char* const variable = std::getenv("ONEDNN_MAX_CPU_ISA");
    const std::string_view limit = variable ? variable : "";
    if (limit.starts_with("AVX") && limit.find("AMX") == limit.npos) return false;
    const auto capabilities = at::cpu::get_cpu_capabilities();
    const auto found = capabilities.find("amx_bf16");
    return found != capabilities.end() && found->second.toBool();
  }();
  return amx;
}

class Muon final : public dsv3::Optimizer {
 public:
  using Options = MuonOptions;
  explicit Muon(const MuonOptions& options) : options_(options) {}

  bool whole_matrices() const override { return true; }
  double lr() const override { return options_.lr; }
  std::vector<dsv3::StateSlot> slots() const override {
    return {{"momentum", dsv3::StateSlot::Like::value, at::kFloat}};
  }

  void step(std::span<const dsv3::Slice> slices, const dsv3::OptimStep& step) override {
    std::map<std::pair<int64_t, int64_t>, std::vector<const dsv3::Slice*>> by_shape;
    for (const dsv3::Slice& slice : slices)
      by_shape[{slice.value.size(0), slice.value.size(1)}].push_back(&slice);
    for (const auto& [shape, group] : by_shape) {
      const at::Device device = group.front()->value.device();
      const at::ScalarType dtype = ns_dtype(device);
      const int64_t bytes = dsv3::muon::orthogonalise_bytes(shape.first, shape.second, dtype);
      const size_t batch = std::max<int64_t>(1, workspace(device) / bytes);
      const std::span<const dsv3::Slice* const> all(group);
      for (size_t begin = 0; begin < all.size(); begin += batch)
        step_batch(all.subspan(begin, std::min(batch, all.size() - begin)), dtype, step);
    }
  }

 private:
  at::ScalarType ns_dtype(const at::Device& device) const {
    const bool bf16 =
        options_.ns_dtype == "auto" ? bf16_is_faster(device) : options_.ns_dtype == "bf16";
    return bf16 ? at::kBFloat16 : at::kFloat;
  }

  /// Updates matrices of the same shape. Updates their momentum one by one and then orthogonalises
  /// all update directions as a batch.
  void step_batch(std::span<const dsv3::Slice* const> slices, at::ScalarType dtype,
                  const dsv3::OptimStep& step) const {
    const at::Tensor& first = slices.front()->value;
    const int64_t rows = first.size(0), cols = first.size(1);
    at::Tensor directions =
        at::empty({int64_t(slices.size()), rows, cols}, first.options().dtype(dtype));
    for (size_t i = 0; i < slices.size(); ++i)
      directions.select(0, i).copy_(momentum(slices[i]->state[0], slices[i]->grad));
    directions = dsv3::muon::orthogonalise(std::move(directions), options_.ns_steps);
    if (step.metrics.wanted())
      step.metrics.scalar("muon/orthogonality_error",
                          dsv3::muon::orthogonality_errors(directions).mean(), dsv3::Reduce::mean,
                          double(slices.size()));

    const double lr = options_.lr * step.lr_factor;
    for (size_t i = 0; i < slices.size(); ++i) {
      const at::Tensor& value = slices[i]->value;
      value.mul_(1 - lr * options_.weight_decay);
      value.add_(directions.select(0, i), -lr * ratio(rows, cols));
    }
  }

  /// Updates the momentum `buffer` and returns the update direction before orthogonalisation.
  at::Tensor momentum(const at::Tensor& buffer, const at::Tensor& grad) const {
    const double mu = options_.momentum;
    if (options_.momentum_form == "ema") {
      buffer.lerp_(grad, 1 - mu);
      return options_.nesterov ? grad.lerp(buffer, mu) : buffer;
    }
    buffer.mul_(mu).add_(grad);
    return options_.nesterov ? grad.add(buffer, mu) : buffer;
  }

  double ratio(int64_t rows, int64_t cols) const {
    if (options_.scale == "original") return std::sqrt(std::max(1.0, double(rows) / double(cols)));
    const double spectral = std::sqrt(double(std::max(rows, cols)));
    return options_.scale == "spectral" ? spectral : 0.2 * spectral;
  }

  MuonOptions options_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.optimizer<Muon>("muon", "Momentum orthogonalised by Newton-Schulz (Muon)");
}
