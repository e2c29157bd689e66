// Promises of positional encodings.
#include <cmath>
#include <thread>

#include <ATen/ATen.h>

#include "conformance/layers.h"
#include "conformance/model.h"

namespace dsv3::conformance {
namespace {

constexpr int64_t kRotary = 8;

std::shared_ptr<Position> position(const Subject& subject) {
  return make<Position>(subject, PositionContext{kRotary, 16});
}

struct Inputs {
  at::Tensor q, k, positions;
};
Inputs inputs(at::ScalarType dtype, int64_t length = kLength) {
  return {normal({2, length, 3, kRotary}, 40, dtype), normal({2, length, 1, kRotary}, 41, dtype),
          at::arange(length).expand({2, length}).contiguous()};
}

void check_shapes(const Subject& subject) {
  const auto made = position(subject);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble})
    for (const int64_t length : {kLength, int64_t{1}}) {
      const Inputs in = inputs(dtype, length);
      const auto [q, k] = made->rotate(in.q, in.k, in.positions);
      require_like(q, in.q.sizes(), dtype, "the rotated q");
      require_like(k, in.k.sizes(), dtype, "the rotated k");
    }
  const double scale = made->softmax_scale();
  require(std::isfinite(scale) && scale > 0, "softmax_scale() is " + std::to_string(scale));
}

void check_inputs(const Subject& subject) {
  const auto made = position(subject);
  const Inputs in = inputs(at::kFloat);
  const Inputs was{in.q.clone(), in.k.clone(), in.positions.clone()};
  made->rotate(in.q, in.k, in.positions);
  require(
      at::equal(in.q, was.q) && at::equal(in.k, was.k) && at::equal(in.positions, was.positions),
      "rotate() changes its arguments");
  require(in.q.use_count() == 1 && in.k.use_count() == 1 && in.positions.use_count() == 1,
          "rotate() keeps an argument when the result is gone");
}

void check_tokens(const Subject& subject) {
  const auto made = position(subject);
  const Inputs in = inputs(at::kDouble);
  const auto [q, k] = made->rotate(in.q, in.k, in.positions);
  // Any order of tokens and any sharing of rows: what counts is the position beside the token.
  const at::Tensor order = at::tensor({7, 0, 3, 11, 5, 1}, at::kLong);
  const auto [some_q, some_k] =
      made->rotate(in.q.index_select(1, order), in.k.index_select(1, order),
                   in.positions.index_select(1, order));
  require_close(some_q, q.index_select(1, order), 1e-12, "q of reordered tokens");
  require_close(some_k, k.index_select(1, order), 1e-12, "k of reordered tokens");
  at::Tensor restarted = in.positions.clone();
  restarted.narrow(1, 6, 6).sub_(6);
  const auto again =
      made->rotate(at::cat({in.q.narrow(1, 0, 6), in.q.narrow(1, 0, 6)}, 1),
                   at::cat({in.k.narrow(1, 0, 6), in.k.narrow(1, 0, 6)}, 1), restarted);
  require_close(again.first.narrow(1, 6, 6), q.narrow(1, 0, 6), 1e-12,
                "q at positions that restart with a second document");
}

// All heads of q and k turn alike: the score of equal vectors at equal positions is that of any
// other position (a rotation keeps lengths, up to a constant factor).
void check_rotation(const Subject& subject) {
  const auto made = position(subject);
  const at::Tensor same = normal({1, 1, 1, kRotary}, 42).expand({1, kLength, 1, kRotary});
  const at::Tensor positions = at::arange(kLength).view({1, kLength});
  const auto [q, k] = made->rotate(same.contiguous(), same.contiguous(), positions);
  const at::Tensor scores = q.squeeze(2).squeeze(0).mm(k.squeeze(2).squeeze(0).t());
  const at::Tensor first = scores.diagonal();
  require_close(first, first[0].expand({kLength}), 1e-9,
                "the score of a token with itself, over the positions,");
  const at::Tensor next = scores.diagonal(1);
  require_close(next, next[0].expand({kLength - 1}), 1e-9,
                "the score of equal vectors one position apart, over the positions,");
}

void check_long(const Subject& subject) {
  const auto made = position(subject);
  Inputs in = inputs(at::kFloat);
  in.positions.add_(5000);
  const auto [q, k] = made->rotate(in.q, in.k, in.positions);
  require_like(q, in.q.sizes(), at::kFloat, "q far beyond the training length");
  // A table that has grown must still hold the same small positions.
  const Inputs near = inputs(at::kFloat);
  const auto after = made->rotate(near.q, near.k, near.positions);
  const auto fresh = position(subject)->rotate(near.q, near.k, near.positions);
  require_equal(after.first, fresh.first, "after a use with large positions, q at small ones");
}

void check_threads(const Subject& subject) {
  const auto made = position(subject);
  const Inputs in = inputs(at::kFloat, 200);
  const auto wanted = position(subject)->rotate(in.q, in.k, in.positions);
  std::vector<at::Tensor> results(4);
  {
    std::vector<std::jthread> threads;
    for (at::Tensor& result : results)
      threads.emplace_back([&] { result = made->rotate(in.q, in.k, in.positions).first; });
  }
  for (const at::Tensor& result : results)
    require_equal(result, wanted.first, "q rotated on several threads at once");
}

void check_gradients(const Subject& subject) {
  const auto made = position(subject);
  Inputs in = inputs(at::kDouble, 4);
  in.q.requires_grad_();
  in.k.requires_grad_();
  require_gradients(
      [&] {
        const auto [q, k] = made->rotate(in.q, in.k, in.positions);
        return at::cat({q.flatten(), k.flatten()});
      },
      {{"q", in.q}, {"k", in.k}});
}

void check_memory(const Subject& subject) {
  const auto made = position(subject);
  require_steady_memory([&] {
    const Inputs in = inputs(at::kFloat);
    made->rotate(in.q, in.k, in.positions);
    position(subject);
  });
}

}  // namespace

std::vector<Check> position_checks() {
  return {
      {"shapes", "returns q and k as they came: sizes and dtype", check_shapes},
      {"inputs", "leaves its arguments alone, and keeps none", check_inputs},
      {"tokens", "turns a token by nothing but its position", check_tokens},
      {"rotation", "makes scores depend on distances only", check_rotation},
      {"length", "works beyond the training length", check_long},
      {"threads", "may be called by several threads at once", check_threads},
      {"gradients", "has the gradients of central differences", check_gradients},
      {"memory", "gives its memory back", check_memory},
      {"model",
       "trains the same in a model with recomputation, other micro-batches, and a "
       "strategy that frees parameters between uses",
       check_in_model},
  };
}

}  // namespace dsv3::conformance
