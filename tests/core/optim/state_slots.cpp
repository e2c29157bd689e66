// Tests optimizer state of every shape, and what OptimizerSet::step() passes to optimizers and
// observers.
#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include <dsv3/sdk/error.h>

#include "checkpoint/tensor_views.h"
#include "core/optim/groups.h"

namespace dsv3::test {
namespace {

using Like = StateSlot::Like;

/// An optimizer with one state tensor of each shape in `slots`. It adds to each of them a function
/// of the gradient that has this shape.
class Shaped final : public Optimizer {
 public:
  explicit Shaped(std::vector<StateSlot> slots, bool whole = true)
      : slots_(std::move(slots)), whole_(whole) {}
  bool whole_matrices() const override { return whole_; }
  bool whole_vectors() const override { return takes_vectors; }
  double lr() const override { return 1; }
  std::vector<StateSlot> slots() const override { return slots_; }
  void step(std::span<const Slice> slices, const OptimStep& step) override {
    steps.push_back(step);
    for (const Slice& slice : slices) {
      for (size_t i = 0; i < slots_.size(); ++i)
        slice.state[i].add_(shaped(slots_[i].like, slice.grad));
      slice.value.sub_(slice.grad * step.lr_factor);
    }
  }

  std::vector<OptimStep> steps;
  bool takes_vectors = false;

 private:
  static at::Tensor shaped(Like like, const at::Tensor& grad) {
    switch (like) {
      case Like::scalar:
        return at::ones({}, at::kLong);
      case Like::rows:
        return grad.sum(1);
      case Like::columns:
        return grad.sum(0);
      case Like::rows_by_rows:
        return grad.mm(grad.t());
      case Like::columns_by_columns:
        return grad.t().mm(grad);
      default:
        return grad;
    }
  }

  std::vector<StateSlot> slots_;
  bool whole_;
};

std::vector<StateSlot> all_slots() {
  return {{"value", Like::value},
          {"matrix", Like::matrix, at::kBFloat16},
          {"scalar", Like::scalar, at::kLong},
          {"rows", Like::rows},
          {"columns", Like::columns},
          {"rows_by_rows", Like::rows_by_rows},
          {"columns_by_columns", Like::columns_by_columns, at::kDouble}};
}

/// A matrix [6, 4], and two stacked matrices [3, 5].
std::vector<Parameter> matrices() {
  return {parameter("a", Role::matrix, {6, 4}), parameter("b", Role::matrix, {2, 3, 5}, 2)};
}

/// Computes the gradient of the sum of (index + 1) * value over all elements.
void backward(Strategy& strategy, const std::vector<Parameter>& parameters) {
  strategy.begin_microbatch(true);
  at::Tensor loss = at::zeros({});
  for (const Parameter& p : parameters)
    loss = loss + (p.tensor.flatten() * at::arange(1, p.tensor.numel() + 1)).sum();
  strategy.backward({loss});
}

struct ShapedRun {
  std::vector<Parameter> parameters = matrices();
  std::shared_ptr<Shaped> optimizer = std::make_shared<Shaped>(all_slots());
  OptimizerSet set{{member("shaped", optimizer)}, parameters};
  std::shared_ptr<Strategy> strategy = strategy_with(parameters, set);
  int64_t bytes_before_bind = set.state_bytes();
  ShapedRun() { set.bind(*strategy); }
};

at::Tensor tensor_of(const safetensors::View& view, at::ScalarType dtype) {
  return at::from_blob(const_cast<void*>(view.bytes), view.shape, dtype).clone();
}

TEST_CASE("the state has the shape and dtype that a slot declares") {
  ShapedRun run;
  backward(*run.strategy, run.parameters);
  run.set.step(*run.strategy, {1, 1});
  CheckpointContent content;
  run.set.save(content);
  const auto& views = content.tensors;
  CHECK(views.size() == 3 * all_slots().size());
  const auto shape = [&](const std::string& slot, const std::string& piece) {
    return views.at("optimizer/" + slot + "/" + piece).shape;
  };
  using Shape = std::vector<int64_t>;
  const std::map<std::string, std::pair<int64_t, int64_t>> pieces{
      {"a", {6, 4}}, {"b/0", {3, 5}}, {"b/15", {3, 5}}};
  for (const auto& [piece, size] : pieces) {
    const auto [rows, columns] = size;
    CHECK(shape("value", piece) == Shape{rows, columns});
    CHECK(shape("matrix", piece) == Shape{rows, columns});
    CHECK(shape("scalar", piece) == Shape{});
    CHECK(shape("rows", piece) == Shape{rows});
    CHECK(shape("columns", piece) == Shape{columns});
    CHECK(shape("rows_by_rows", piece) == Shape{rows, rows});
    CHECK(shape("columns_by_columns", piece) == Shape{columns, columns});
    CHECK(views.at("optimizer/matrix/" + piece).dtype == "BF16");
    CHECK(views.at("optimizer/scalar/" + piece).dtype == "I64");
  }
  const at::Tensor grad = at::arange(16, 31, at::kFloat).view({3, 5});
  CHECK(at::equal(tensor_of(views.at("optimizer/rows/b/15"), at::kFloat), grad.sum(1)));
  CHECK(at::equal(tensor_of(views.at("optimizer/columns_by_columns/b/15"), at::kDouble),
                  grad.t().mm(grad).to(at::kDouble)));
}

TEST_CASE("an optimizer for matrices receives whole vectors as [1, n] if it accepts them") {
  const std::vector<Parameter> parameters{parameter("v", Role::norm, {5})};
  const auto optimizer = std::make_shared<Shaped>(all_slots());
  CHECK_THROWS_WITH(OptimizerSet({member("shaped", optimizer)}, parameters),
                    Catch::Contains("works on matrices only") &&
                        Catch::Contains("such as {role: [norm], plugin: adamw, lr: NUMBER}"));
  optimizer->takes_vectors = true;
  OptimizerSet set({member("shaped", optimizer)}, parameters);
  const auto strategy = strategy_with(parameters, set);
  const int64_t bytes_before_bind = set.state_bytes();
  set.bind(*strategy);
  CHECK(set.state_bytes() == bytes_before_bind);
  backward(*strategy, parameters);
  set.step(*strategy, {1, 1});
  CHECK(at::equal(parameters[0].tensor.detach(), 1 - at::arange(1, 6, at::kFloat)));
  CheckpointContent content;
  set.save(content);
  const auto& views = content.tensors;
  CHECK(views.at("optimizer/rows/v").shape == std::vector<int64_t>{1});
  CHECK(views.at("optimizer/columns/v").shape == std::vector<int64_t>{5});
}

TEST_CASE("state_bytes() counts state of every shape, before and after bind()") {
  ShapedRun run;
  int64_t bytes = 0;
  for (const auto& [rows, columns] : {std::pair{6, 4}, {3, 5}, {3, 5}})
    bytes += rows * columns * (4 + 2) + 8 + rows * 4 + columns * 4 + rows * rows * 4 +
             columns * columns * 8;
  CHECK(run.set.state_bytes() == bytes);
  CHECK(run.bytes_before_bind == bytes);
}

TEST_CASE("state of every shape is loaded bit for bit") {
  ShapedRun saved, loaded;
  for (int64_t update = 1; update <= 2; ++update) {
    backward(*saved.strategy, saved.parameters);
    saved.set.step(*saved.strategy, {update, 0.3});
  }
  CheckpointContent content, content_again;
  saved.set.save(content);
  const auto& views = content.tensors;
  loaded.set.load(views);
  loaded.set.save(content_again);
  const auto& again = content_again.tensors;
  REQUIRE(again.size() == views.size());
  for (const auto& [key, view] : views) {
    INFO(key);
    const safetensors::View& copy = again.at(key);
    CHECK(copy.bytes != view.bytes);
    CHECK(copy.shape == view.shape);
    const int64_t bytes = c10::multiply_integers(view.shape) *
                          int64_t(c10::elementSize(dtype_from_name(view.dtype).value()));
    CHECK(std::memcmp(copy.bytes, view.bytes, size_t(bytes)) == 0);
  }
}

TEST_CASE("an optimizer that accepts pieces of any length cannot have state like a matrix") {
  const Like like = GENERATE(Like::matrix, Like::rows, Like::columns, Like::rows_by_rows,
                             Like::columns_by_columns);
  const auto parameters = matrices();
  const auto optimizer =
      std::make_shared<Shaped>(std::vector<StateSlot>{{"factor", like}}, /*whole=*/false);
  OptimizerSet set({member("pieces", optimizer)}, parameters);
  const auto strategy = strategy_with(parameters, set);
  const auto message =
      Catch::Contains("'factor' requires whole matrices; return true from whole_matrices()");
  CHECK_THROWS_WITH(set.state_bytes(), message);
  CHECK_THROWS_WITH(set.bind(*strategy), message);
}

TEST_CASE("optimizers receive the update number, the learning-rate factor and the progress") {
  ShapedRun run;
  backward(*run.strategy, run.parameters);
  run.set.step(*run.strategy, {.update = 3, .lr_factor = 0.5, .progress = 0.25});
  REQUIRE(run.optimizer->steps.size() == 1);
  CHECK(run.optimizer->steps[0].update == 3);
  CHECK(run.optimizer->steps[0].lr_factor == 0.5);
  CHECK(run.optimizer->steps[0].progress == 0.25);
}

TEST_CASE("an observer receives the gradients and changes of every piece") {
  const std::vector<Parameter> parameters{parameter("a", Role::matrix, {6, 4}),
                                          parameter("b", Role::matrix, {2, 3, 5}, 2),
                                          parameter("c", Role::norm, {7})};
  const auto slots = std::vector<StateSlot>{{"sum", Like::value}};
  OptimizerSet set({member("muon", std::make_shared<Shaped>(slots), {"matrix"}),
                    member("adamw", std::make_shared<Shaped>(slots, /*whole=*/false))},
                   parameters);
  const auto strategy = strategy_with(parameters, set);
  set.bind(*strategy);
  backward(*strategy, parameters);
  std::vector<std::string> seen;
  set.step(*strategy, {1, 0.5}, [&](std::span<const ParameterUpdate> updates) {
    for (const ParameterUpdate& update : updates) {
      const Range& range = update.range;
      seen.push_back(range.name + "/" + std::to_string(range.begin));
      const bool matrix = range.name != "c";
      CHECK(update.role == (matrix ? Role::matrix : Role::norm));
      CHECK(update.optimizer == (matrix ? "muon" : "adamw"));
      CHECK(update.whole_matrices == matrix);
      const at::Tensor grad = at::arange(range.begin + 1, range.end + 1, at::kFloat);
      CHECK(at::equal(update.grad.flatten(), grad));
      CHECK(at::equal(update.change.flatten(), grad * -0.5));
      CHECK(update.change.dim() == (matrix ? 2 : 1));
    }
  });
  CHECK(seen == std::vector<std::string>{"a/0", "b/0", "b/15", "c/0"});
  for (const Parameter& p : parameters) {
    const at::Tensor grad = at::arange(1, p.tensor.numel() + 1, at::kFloat);
    CHECK(at::equal(p.tensor.grad().flatten(), grad));
    CHECK(at::equal(p.tensor.detach().flatten(), 1 - grad * 0.5));
  }
}

}  // namespace
}  // namespace dsv3::test
