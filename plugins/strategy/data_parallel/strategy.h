// Data parallelism, with optimizer state, gradients and parameters replicated or sharded.
#pragma once

#include <deque>
#include <map>
#include <set>

#include <dsv3/sdk/strategy.h>

#include "matrices.h"
#include "reducer.h"

namespace dsv3::data_parallel {

class DataParallel : public Strategy {
 public:
  DataParallel(Settings settings, const StrategyContext& context);

  int adopt(UnitSpec spec) override;
  void ready(const std::vector<GroupSpec>& groups) override;
  void begin_microbatch(bool last) override;
  void enter(int unit, TensorRefs inputs) override;
  void leave(int unit, TensorRefs outputs) override;
  void backward(at::TensorList roots, at::TensorList grads) override;
  at::Tensor grad_norm() override;
  void scale_grads(const at::Tensor& factor) override;
  void update(int group, const UpdateFunction& fn) override;
  void end_step() override;
  std::vector<Range> update_ranges(int group) const override;
  std::vector<OwnedTensor> owned() override;
  void loaded() override;
  Cost estimate(const ModelPlan& plan, int ranks) const override;

 private:
  struct Unit {
    std::string name;
    bool needed_in_backward = true;
    std::vector<Segment> segments = {};
    int64_t uses = 0;  // calls of enter() without leave(), in the forward or backward pass
    int64_t unfinished =
        0;                 // calls of enter() in this micro-batch whose backward pass has not ended
    bool reduced = false;  // in this micro-batch
  };

  void open(Unit& unit);
  void close(Unit& unit, bool keep);
  void release(Unit& unit);
  void prefetch_forward(int index);
  void prefetch_backward();
  void reduce(Unit& unit);
  void end_backward();
  void update_pieces(int group, const UpdateFunction& fn);
  std::vector<UpdateTensor> pieces_of(const Unit& unit, int group) const;
  void refresh();
  template <class F>
  void each_segment(const F& f);

  Settings settings_;
  StrategyContext context_;
  std::map<int64_t, Place> places_;       // by UnitParam::shards
  std::map<int64_t, Channels> channels_;  // likewise
  std::shared_ptr<Communicator> norms_;
  std::deque<Unit> units_;
  std::vector<GroupSpec> groups_;
  std::vector<Matrices> matrices_;  // by group
  std::set<std::string> names_;
  Reducer reducer_;
  bool last_ = true;
  std::vector<int> entered_, plan_;  // units in the order of this and the previous forward pass
  std::vector<int> left_;            // units whose backward passes have not begun, in forward order
};

/// Divides a unit's parameters into segments. `places` receives the places of new ones.
std::vector<Segment> segments_of(const UnitSpec& spec, int64_t unit, int64_t rank, int64_t ranks,
                                 const Settings& settings, at::ScalarType compute_dtype,
                                 std::map<int64_t, Place>& places);

}  // namespace dsv3::data_parallel
