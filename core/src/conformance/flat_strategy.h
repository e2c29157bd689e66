// A strategy on one rank that does to parameters what sharded ones do: each unit's values exist
// only between enter and leave, in forward and in backward, and its gradients are taken away as
// soon as its backward is over. Whatever reads or adds outside of that meets NaN or unmapped
// memory. Must train bit-equal to `single`.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include <dsv3/sdk/flat.h>
#include <dsv3/sdk/options.h>
#include <dsv3/sdk/strategy.h>

namespace dsv3::conformance {

struct FlatOptions {
  std::string freed = "nan";
  static void describe(OptionSchema<FlatOptions>& s) {
    s.add("freed", &FlatOptions::freed, "what is in the place of values between leave and enter")
        .choices({"nan", "unmapped"});
  }
};

class FlatStrategy final : public Strategy {
 public:
  using Options = FlatOptions;
  FlatStrategy(const FlatOptions& options, const StrategyContext& context);

  int adopt(UnitSpec spec) override;
  void ready(const std::vector<GroupSpec>& groups) override;
  void begin_microbatch(bool last) override;
  void enter(int unit, TensorRefs inputs) override;
  void leave(int unit, TensorRefs outputs) override;
  void backward(at::TensorList roots, at::TensorList grads) override;
  double grad_norm() override;
  void scale_grads(double factor) override;
  void update(int group, const std::function<void(std::span<UpdateTensor>)>& fn) override;
  void end_step() override;
  std::vector<Range> update_ranges(int group) const override;
  std::vector<OwnedTensor> owned() override;
  void loaded() override {}
  Cost estimate(std::span<const UnitSpec> units, int ranks) const override;

  /// Times that values were brought back, and that a unit's gradients were reduced inside backward.
  int gathers() const { return gathers_; }
  int reductions() const { return reductions_; }

 private:
  struct Unit {
    UnitSpec spec;
    FlatLayout layout;
    at::Tensor master;                // fp32, kept
    std::vector<at::Tensor> buffers;  // what parameters view: fp32, and the compute dtype's; freed
    at::Tensor reduced;               // fp32 sum of finished micro-batches, kept
    at::Tensor grad;  // where autograd adds; NaN when no backward of the unit is under way
    int uses = 0;     // holders of the values
    int pending = 0;  // enters of this micro-batch whose node has not fired yet
    bool accumulating = false;  // grad is live
  };

  void open(Unit& unit);
  void close(Unit& unit);
  void release(Unit& unit);
  void begin_gradients(Unit& unit);
  void reduce(Unit& unit);

  FlatOptions options_;
  StrategyContext context_;
  std::vector<Unit> units_;
  std::vector<GroupSpec> groups_;
  int gathers_ = 0, reductions_ = 0;
};

}  // namespace dsv3::conformance
