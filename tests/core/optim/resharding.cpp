// Checkpoints of a strategy and a number of ranks, read by another strategy and number of ranks.
#include <atomic>

#include <catch2/catch.hpp>

#include <dsv3/runtime/rank_threads.h>
#include <dsv3/support/fs.h>

#include "core/optim/groups.h"
#include "core/support/temporary_folder.h"

namespace dsv3::test {
namespace {

/// How ranks share a parameter: equal ranges of its elements; a copy on each rank, one of which is
/// primary; or slices along the first dimension, as of experts.
enum class Sharing { even = 1, copies, slices };

std::vector<Parameter> parameters() {
  return {parameter("embedding", Role::embedding, {10, 4}), parameter("q", Role::matrix, {4, 6}),
          parameter("norm", Role::norm, {7}), parameter("experts", Role::matrix, {12, 8, 4}, 12),
          parameter("bias", Role::bias, {2})};
}

/// The value that the first element of a parameter should have.
int64_t first_value(const std::string& name) {
  const std::vector<Parameter> all = parameters();
  return 1000 * (std::ranges::find(all, name, &Parameter::name) - all.begin());
}

/// Whole matrices have owners. Everything else is shared as `sharing` says. The value of an element
/// of parameter p is 1000 p plus its number in the whole parameter.
class SharedStrategy final : public Strategy {
 public:
  SharedStrategy(Sharing sharing, int64_t rank, int64_t ranks,
                 const std::vector<Parameter>& parameters, const OptimizerSet& set)
      : sharing_(sharing), rank_(rank), ranks_(ranks) {
    for (const Parameter& p : parameters) params_.push_back({p, set.group_of(p)});
    ready(set.specs());
  }
  int adopt(UnitSpec) override { return 0; }
  void ready(const std::vector<GroupSpec>& groups) override { groups_ = groups; }
  void begin_microbatch(bool) override {}
  void enter(int, TensorRefs) override {}
  void leave(int, TensorRefs) override {}
  void backward(at::TensorList, at::TensorList) override {}
  at::Tensor grad_norm() override { return at::zeros({}, at::kDouble); }
  void scale_grads(const at::Tensor&) override {}
  void end_step() override {}
  void loaded() override {}
  Cost estimate(const ModelPlan&, int) const override { return {}; }

  /// Gives the optimizer the values that the parameters should have.
  void update(int group, const std::function<void(std::span<UpdateTensor>)>& fn) override {
    std::vector<UpdateTensor> tensors;
    for (const Range& range : update_ranges(group)) {
      at::Tensor value = value_of(range);
      if (groups_[size_t(group)].whole_matrices) value = value.view({-1, range.box_shape.back()});
      tensors.push_back({range, value, at::zeros_like(value)});
    }
    fn(tensors);
  }
  std::vector<Range> update_ranges(int group) const override {
    std::vector<Range> ranges;
    for (size_t i = 0; i < params_.size(); ++i) {
      if (params_[i].group != group) continue;
      if (!groups_[size_t(group)].whole_matrices)
        ranges.push_back(share_of(i));
      else
        add_matrices(i, ranges);
    }
    return ranges;
  }
  /// Starts with other values than they should have, to be overwritten.
  std::vector<OwnedTensor> owned() override {
    if (values_.empty())
      for (size_t i = 0; i < params_.size(); ++i) {
        const Range range = share_of(i);
        values_.push_back({range, at::full({range.end - range.begin}, -1.0)});
      }
    return values_;
  }
  /// The values that a range should have.
  at::Tensor value_of(const Range& range) const {
    int64_t first = range.begin;
    if (range.box_shape != range.global_shape)
      first += range.box_offset[0] *
               (c10::multiply_integers(range.global_shape) / range.global_shape[0]);
    first += first_value(range.name);
    return at::arange(first, first + range.end - range.begin, at::kFloat);
  }

 private:
  struct Shared {
    Parameter parameter;
    int group;
  };

  Range box_of(size_t i, int64_t rank) const {
    const Parameter& p = params_[i].parameter;
    Range range{.name = p.name, .global_shape = p.tensor.sizes().vec()};
    range.box_shape = range.global_shape;
    range.box_offset.assign(range.box_shape.size(), 0);
    if (sharing_ == Sharing::slices) {
      const int64_t rows = range.global_shape[0];
      range.box_offset[0] = rank * rows / ranks_;
      range.box_shape[0] = (rank + 1) * rows / ranks_ - range.box_offset[0];
    }
    range.end = c10::multiply_integers(range.box_shape);
    return range;
  }
  Range share_of(size_t i) const {
    Range range = box_of(i, rank_);
    if (sharing_ == Sharing::copies) range.primary = int64_t(i) % ranks_ == rank_;
    if (sharing_ == Sharing::even) {
      range.begin = rank_ * range.end / ranks_;
      range.end = (rank_ + 1) * c10::multiply_integers(range.box_shape) / ranks_;
    }
    return range;
  }
  /// Matrices of a slice stay on its rank; the others go round.
  void add_matrices(size_t i, std::vector<Range>& ranges) const {
    const Parameter& p = params_[i].parameter;
    const int64_t size = p.tensor.numel() / p.spec.matrices;
    Range box = box_of(i, rank_);
    if (sharing_ == Sharing::slices && size > box.end) {  // one matrix that cannot be sliced
      box = box_of(i, 0);
      box.box_shape = box.global_shape;
      box.end = rank_ == 0 ? size : 0;
    }
    for (int64_t begin = 0, matrix = int64_t(i); begin < box.end; begin += size, ++matrix) {
      if (sharing_ != Sharing::slices && matrix % ranks_ != rank_) continue;
      Range& range = ranges.emplace_back(box);
      range.begin = begin;
      range.end = begin + size;
    }
  }

  Sharing sharing_;
  int64_t rank_, ranks_;
  std::vector<Shared> params_;
  std::vector<GroupSpec> groups_;
  std::vector<OwnedTensor> values_;
};

/// An optimizer whose state depends on the values. Its second update requires the state of the
/// first.
class Remembering final : public Optimizer {
 public:
  explicit Remembering(bool whole) : whole_(whole) {}
  bool whole_matrices() const override { return whole_; }
  std::vector<StateSlot> slots() const override {
    using Like = StateSlot::Like;
    std::vector<StateSlot> slots{{"twice", Like::value},
                                 {"first", Like::scalar, at::kLong},
                                 {"short", Like::value, at::kBFloat16}};
    if (whole_) slots.push_back({"rows", Like::rows, at::kDouble});
    return slots;
  }
  void step(std::span<const Slice> slices, const OptimStep& step) override {
    for (const Slice& slice : slices) {
      std::vector<at::Tensor> expected{slice.value * 2, first_of(slice),
                                       slice.value.to(at::kBFloat16)};
      if (whole_) expected.push_back(slice.value.sum(1).to(at::kDouble));
      for (size_t i = 0; i < expected.size(); ++i)
        if (step.update == 1)
          slice.state[i].copy_(expected[i]);
        else if (!at::equal(slice.state[i], expected[i]))
          throw Error("state " + slots()[i].name + " of " + slice.range.name + " differs");
    }
  }
  double lr() const override { return 1; }

  /// Returns the first value of the saved piece that has the first element of a piece of
  /// `parameter`.
  std::function<at::Tensor(const Slice&)> first_saved;

 private:
  at::Tensor first_of(const Slice& slice) const {
    const at::Tensor first = slice.value.numel() > 0 ? slice.value.flatten()[0] : at::zeros({});
    return first_saved && !whole_ ? first_saved(slice) : first.to(at::kLong);
  }

  bool whole_;
};

/// One rank of a run.
struct RankRun {
  std::vector<Parameter> all = parameters();
  std::shared_ptr<Remembering> pieces = std::make_shared<Remembering>(false);
  OptimizerSet set{
      {member("whole", std::make_shared<Remembering>(true), {"matrix"}), member("pieces", pieces)},
      all};
  SharedStrategy strategy;

  RankRun(Sharing sharing, const Communicator& ranks)
      : strategy(sharing, ranks.rank(), ranks.size(), all, set) {
    set.bind(strategy);
  }
  /// Saves the values that the parameters should have, and the state after one update.
  void save_trained(const std::filesystem::path& folder, Communicator& ranks) {
    for (const OwnedTensor& owned : strategy.owned())
      owned.value.copy_(strategy.value_of(owned.range));
    set.step(strategy, {.update = 1});
    save(folder, ranks);
  }
  void save(const std::filesystem::path& folder, Communicator& ranks) {
    CheckpointContent content{.step = 1};
    content.state = Json::object();
    save_parameters(strategy, content);
    set.save(content);
    CheckpointStore(folder, 1).save(content, ranks);
  }
  void load(const std::filesystem::path& folder) {
    const StoredTensors tensors(verify_checkpoint(folder / "step-1"));
    load_parameters(strategy, tensors);
    set.load(tensors);
  }
};

TEST_CASE("any number of ranks reads what any number of ranks saved, however they share it") {
  const TemporaryFolder folder;
  on_ranks(1, [&](const std::shared_ptr<Communicator>& ranks) {
    RankRun(Sharing::even, *ranks).save_trained(folder / "one", *ranks);
  });
  const std::string one = fs::read(folder / "one/step-1/rank-00000.safetensors");
  const Sharing saved_as = GENERATE(Sharing::even, Sharing::copies, Sharing::slices);
  const int64_t saving = GENERATE(1, 2, 3, 4);
  INFO("saved by " << saving << " ranks, sharing " << int(saved_as));
  on_ranks(saving, [&](const std::shared_ptr<Communicator>& ranks) {
    RankRun(saved_as, *ranks).save_trained(folder / "many", *ranks);
  });
  // The first value of the piece of `saving` ranks that has the first element.
  const auto first_saved = [&](const Slice& slice) {
    const Range& range = slice.range;
    const int64_t rows = range.global_shape[0];
    const int64_t row_size = c10::multiply_integers(range.global_shape) / rows;
    const int64_t first = range.begin + range.box_offset[0] * row_size;
    int64_t begin = 0;
    for (int64_t rank = 0; rank < saving; ++rank) {
      const int64_t next = saved_as == Sharing::copies   ? 0
                           : saved_as == Sharing::slices ? rank * rows / saving * row_size
                                                         : rank * rows * row_size / saving;
      if (next <= first) begin = next;
    }
    return at::full({}, first_value(range.name) + begin, at::kLong);
  };
  for (const Sharing read_as : {Sharing::even, Sharing::copies, Sharing::slices})
    for (const int64_t reading : {1, 2, 3, 4}) {
      INFO("read by " << reading << " ranks, sharing " << int(read_as));
      std::atomic<int64_t> values = 0;
      on_ranks(reading, [&](const std::shared_ptr<Communicator>& ranks) {
        RankRun run(read_as, *ranks);
        run.load(folder / "many");
        for (const OwnedTensor& owned : run.strategy.owned()) {
          if (!at::equal(owned.value, run.strategy.value_of(owned.range)))
            throw Error("values of " + owned.range.name + " differ");
          if (owned.range.primary) values += owned.value.numel();
        }
        run.pieces->first_saved = first_saved;
        run.set.step(run.strategy, {.update = 2});
        if (reading == 1) run.save(folder / "again", *ranks);
      });
      CHECK(values == 10 * 4 + 4 * 6 + 7 + 12 * 8 * 4 + 2);
      if (reading > 1) continue;
      CHECK(fs::read(folder / "again/step-1/rank-00000.safetensors") == one);
      std::filesystem::remove_all(folder / "again");
    }
  // Tensors can be read whole, too.
  const StoredTensors many(verify_checkpoint(folder / "many/step-1"));
  const StoredTensors whole(verify_checkpoint(folder / "one/step-1"));
  for (const std::string& name : whole.names()) {
    if (name.starts_with("optimizer/first/")) continue;  // depends on the pieces
    INFO(name);
    CHECK(at::equal(many.whole(name), whole.whole(name)));
  }
}

}  // namespace
}  // namespace dsv3::test
