// Includes a working component, with its registration function renamed to avoid a name clash.
#define dsv3_register_plugin working_attention
#include "../../../tools/templates/plugin/attention/plugin.cpp"
#undef dsv3_register_plugin

#include <dsv3/sdk/packing.h>

#include "faults.h"

namespace faulty {
namespace {

/// Runs an operator that the fake CUDA device cannot run.
at::Tensor run_gru(const at::Tensor& x) {
  if (!x.is_cuda()) return x;
  const int64_t width = x.size(2);
  const std::vector<at::Tensor> weights{at::ones({3 * width, width}, x.options()),
                                        at::ones({3 * width, width}, x.options())};
  const at::Tensor start = at::ones({1, x.size(0), width}, x.options());
  return std::get<0>(at::gru(x, start, weights, /*has_biases=*/false, /*num_layers=*/1,
                             /*dropout=*/0, /*train=*/false, /*bidirectional=*/false,
                             /*batch_first=*/true));
}

class Faulty final : public dsv3::Attention {
 public:
  using Options = FaultyOptions;
  Faulty(const FaultyOptions& options, const dsv3::LayerContext& context)
      : Attention(context), fault_(options), working_(::Options{}, context) {}

  at::Tensor forward(const at::Tensor& x, const dsv3::Sequence& seq) override {
    if (x.is_meta()) return working_.forward(x, seq);  // a measurement
    fault_.work();
    dsv3::Sequence used = seq;
    if (fault_.is("looks_ahead") && !seq.cache)
      used.packing = std::make_shared<dsv3::Packing>(
          at::ones({x.size(0), 1, x.size(1), x.size(1)}, at::kBool));
    if (fault_.is("forgets_cache")) used.cache = nullptr;
    const at::Tensor y = working_.forward(x, used);
    if (fault_.is("reads_device_memory") && x.is_cuda()) return y * *x.const_data_ptr<float>();
    if (fault_.is("reads_new_memory") && x.is_cuda()) return y + at::empty_like(y);
    if (fault_.is("waits")) return y * (y.sum().item<double>() * 0 + 1);
    if (fault_.is("runs_gru")) return run_gru(x);
    if (fault_.is("makes_host_tensor")) return y * at::ones({x.size(-1)}, x.scalar_type());
    if (fault_.is("undeclared_leaf")) return y * scale_;
    if (fault_.is("undescribed_metric")) seq.metrics.scalar("faulty/mean", y.mean());
    if (fault_.is("core_metric")) seq.metrics.scalar("train/mean", y.mean());
    if (fault_.is("metric_changes_result") && seq.metrics.wanted()) return y + 1;
    return spoiled(fault_, x, y);
  }
  int64_t cache_values_per_token() const override { return working_.cache_values_per_token(); }

 private:
  Fault fault_;
  SelfAttention working_;
  at::Tensor scale_ = at::ones({1}).requires_grad_();
};

}  // namespace

void register_attention(dsv3::Registrar& registrar) {
  registrar.attention<Faulty>("faulty", "Attention layer with a configurable fault");
}

}  // namespace faulty
