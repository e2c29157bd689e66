// Includes a working component, with its registration function renamed to avoid a name clash.
#define dsv3_register_plugin working_position
#include "../../../tools/templates/plugin/position/plugin.cpp"
#undef dsv3_register_plugin

#include <cmath>
#include <stdexcept>

#include "faults.h"

namespace faulty {
namespace {

class Faulty final : public dsv3::Position {
 public:
  using Options = FaultyOptions;
  Faulty(const FaultyOptions& options, const dsv3::PositionContext& context)
      : fault_(options), working_(::Options{}, context) {}

  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& positions) const override {
    if (q.is_meta()) return working_.rotate(q, k, positions);  // a measurement
    fault_.work();
    auto [new_q, new_k] = working_.rotate(q, k, positions);
    if (fault_.is("k_of_q")) return {new_q, k};
    if (fault_.is("undeclared_leaf")) return {new_q * scale_, new_k};
    return {new_q, spoiled(fault_, k, new_k)};
  }
  double softmax_scale() const override {
    fault_.work();
    return fault_.is("scale_zero") ? 0 : working_.softmax_scale();
  }

 private:
  mutable Fault fault_;
  Rotary working_;
  at::Tensor scale_ = at::ones({1}).requires_grad_();
};

}  // namespace

void register_position(dsv3::Registrar& registrar) {
  registrar.position<Faulty>("faulty", "Positional encoding with a configurable fault");
}

}  // namespace faulty
