// position/host_table: rotary positions from a table that is cached on the host.
#include <ATen/ATen.h>

#include <dsv3/sdk/angles.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

class HostTable final : public dsv3::Position {
 public:
  using Options = dsv3::NoOptions;
  HostTable(const Options&, const dsv3::PositionContext& context) {
    const at::Tensor rates =
        at::tensor(dsv3::rotary_frequencies(context.rotary_dim, 10000), at::kDouble);
    angles_ = at::arange(context.sequence, at::kDouble).unsqueeze(1) * rates;
  }

  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& positions) const override {
    const at::Tensor angles = angles_.index({positions});
    const at::Tensor cos = angles.cos().to(at::kFloat), sin = angles.sin().to(at::kFloat);
    return {dsv3::rotate(q, cos, sin, true), dsv3::rotate(k, cos, sin, true)};
  }

 private:
  at::Tensor angles_;  // float64 [positions, pairs]
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.position<HostTable>("host_table", "Test positions with a table on the host");
}
