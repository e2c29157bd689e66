// Tests strategies with parameters of which ranks hold different slices, as in expert parallelism.
#include <cmath>
#include <mutex>

#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include <dsv3/runtime/rank_threads.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/strategy.h>

#include "support/built_plugins.h"

namespace dsv3::test {
namespace {

constexpr int64_t kRanks = 4, kSlices = 2, kExperts = 4, kWidth = 40;  // experts of all ranks

/// The slope of the loss on a rank, for each weight of the experts that it holds.
at::Tensor slope(int64_t rank, at::IntArrayRef shape) {
  const at::Tensor index = at::arange(c10::multiply_integers(shape), at::kFloat);
  return at::cos(index + double(rank)).view(shape);
}

at::Tensor initial_experts() {
  return at::arange(kExperts * 3 * kWidth, at::kFloat).div(100).view({kExperts, 3, kWidth});
}

struct Layer {
  Layer(int64_t rank, int group) {
    const int64_t count = kExperts / kSlices, first = rank % kSlices * count;
    experts = initial_experts().narrow(0, first, count).clone();
    shared = at::ones({kWidth});
    spec = {"layer",
            {{.name = "experts",
              .tensor = experts,
              .global_shape = {kExperts, 3, kWidth},
              .box_offset = {first, 0, 0},
              .matrices = count,
              .group = group,
              .shards = kSlices},
             {.name = "shared", .tensor = shared, .global_shape = {kWidth}, .box_offset = {0}}}};
  }
  at::Tensor loss(int64_t rank) const {
    return (experts * slope(rank, experts.sizes())).sum() + (shared * double(rank + 1)).sum();
  }

  at::Tensor experts, shared;
  UnitSpec spec;
};

void backward(Strategy& strategy, const Layer& layer, int64_t rank) {
  strategy.begin_microbatch(true);
  at::Tensor input = at::ones({1}).set_requires_grad(true);
  strategy.enter(0, {&input});
  at::Tensor loss = layer.loss(rank) * input.sum();
  strategy.leave(0, {&loss});
  strategy.backward({loss});
}

/// The experts' gradients: each slice is summed over the ranks that hold it.
at::Tensor expert_gradient() {
  std::vector<at::Tensor> slices;
  for (int64_t slice = 0; slice < kSlices; ++slice) {
    at::Tensor sum = at::zeros({kExperts / kSlices, 3, kWidth});
    for (int64_t rank = slice; rank < kRanks; rank += kSlices) sum += slope(rank, sum.sizes());
    slices.push_back(sum);
  }
  return at::cat(slices);
}

void add(at::Tensor& all, const Range& range, const at::Tensor& piece) {
  at::Tensor box = all.narrow(0, range.box_offset[0], range.box_shape[0]).view(-1);
  box.narrow(0, range.begin, range.end - range.begin).add_(piece.reshape(-1));
}

TEST_CASE("slices of a parameter are summed, counted and updated where they are") {
  const int group = GENERATE(0, 1);  // group 1: whole matrices
  const int64_t stage = GENERATE(0, 1, 2, 3), shard = GENERATE(0, 2);
  if (stage == 0 && shard != 0) return;
  CAPTURE(group, stage, shard);
  at::Tensor experts = at::zeros({kExperts, 3, kWidth}), owners = at::zeros_like(experts);
  at::Tensor shared = at::zeros({kWidth}), updated = at::zeros_like(experts);
  std::vector<double> norms(kRanks);
  std::mutex mutex;
  on_ranks(kRanks, [&](const std::shared_ptr<Communicator>& world) {
    std::shared_ptr<Strategy> strategy;
    {
      const std::scoped_lock lock(mutex);
      const OptionValues options{{"stage", stage}, {"shard", shard}};
      strategy =
          make_built<Strategy>(Kind::strategy, stage == 0 ? "ddp" : "zero",
                               stage == 0 ? OptionValues{} : options, StrategyContext{world});
    }
    const Layer layer(world->rank(), group);
    strategy->adopt(layer.spec);
    strategy->ready({{false}, {true}});
    backward(*strategy, layer, world->rank());
    norms[size_t(world->rank())] = strategy->grad_norm().item<double>();
    for (const int number : {0, 1})
      strategy->update(number, [&](std::span<UpdateTensor> tensors) {
        for (UpdateTensor& tensor : tensors) {
          tensor.value.sub_(tensor.grad);
          if (number == 1 && tensor.value.sizes() != at::IntArrayRef({3, kWidth}))
            throw Error("an expert is not passed as a whole matrix");
        }
      });
    strategy->end_step();
    const at::NoGradGuard no_grad;
    strategy->enter(0, {});
    const at::Tensor own = layer.experts.clone();
    strategy->leave(0, {});
    const std::scoped_lock lock(mutex);
    for (const OwnedTensor& owned : strategy->owned()) {
      if (!owned.range.primary) continue;
      add(owned.range.name == "experts" ? experts : shared, owned.range, owned.value);
      if (owned.range.name == "experts") add(owners, owned.range, at::ones_like(owned.value));
    }
    for (const Range& range : strategy->update_ranges(group))
      if (range.primary && range.name == "experts")
        add(updated, range, at::ones({range.end - range.begin}));
    const at::Tensor expected = initial_experts() - expert_gradient();
    const int64_t first = layer.spec.params[0].box_offset[0];
    if (!at::allclose(own, expected.narrow(0, first, own.size(0))))
      throw Error("rank " + std::to_string(world->rank()) + " computes with other experts");
  });
  const at::Tensor gradient = expert_gradient();
  CHECK(at::allclose(experts, initial_experts() - gradient));
  CHECK(at::equal(owners, at::ones_like(owners)));
  CHECK(at::equal(updated, at::ones_like(updated)));
  CHECK(at::allclose(shared, at::full({kWidth}, 1.0 - 10)));
  const double squares = gradient.square().sum(at::kDouble).item<double>() + kWidth * 100;
  for (const double norm : norms) CHECK(norm == Approx(std::sqrt(squares)).epsilon(1e-6));
}

TEST_CASE("a rank that is lost in the backward pass ends the others") {
  const std::string name = GENERATE("ddp", "fsdp");
  std::mutex mutex;
  std::vector<ExitCode> codes(2, ExitCode::failed);
  const auto body = [&](const std::shared_ptr<Communicator>& world) {
    std::shared_ptr<Strategy> strategy;
    {
      const std::scoped_lock lock(mutex);
      strategy = make_built<Strategy>(Kind::strategy, name, {}, StrategyContext{world});
    }
    Layer layer(0, 0);
    for (UnitParam& param : layer.spec.params) param.shards = 1;
    strategy->adopt(layer.spec);
    strategy->ready({{}});
    backward(*strategy, layer, 0);
    strategy->end_step();
    if (world->rank() == 1) throw Error("out of data", ExitCode::data);
    try {
      backward(*strategy, layer, 0);
    } catch (const Error& error) {
      codes[0] = error.code();
      throw;
    }
  };
  CHECK_THROWS_WITH(on_ranks(2, body), "out of data");
  CHECK(codes[0] == ExitCode::peer_lost);
}

}  // namespace
}  // namespace dsv3::test
