// No positional encoding.
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

class NoPosition final : public dsv3::Position {
 public:
  using Options = dsv3::NoOptions;
  NoPosition(const dsv3::NoOptions&, const dsv3::PositionContext&) {}

  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor&) const override {
    return {q, k};
  }
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.position<NoPosition>("none", "No positional encoding (NoPE)");
}
