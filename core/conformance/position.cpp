// Conformance checks for positional encodings.
#include <cmath>

#include "conformance/device.h"
#include "conformance/layers.h"

namespace dsv3::conformance {
namespace {

constexpr int64_t kRotary = 8;

struct Rotated {
  at::Tensor q, k, positions;
};

Rotated inputs(at::ScalarType dtype, int64_t length = kLength) {
  return {normal({2, length, 3, kRotary}, 40, dtype), normal({2, length, 1, kRotary}, 41, dtype),
          at::arange(length).expand({2, length}).contiguous()};
}

/// Calls the component under test.
struct Rotation {
  explicit Rotation(const Subject& subject)
      : position(construct<Position>(subject, PositionContext{kRotary, 16})) {}
  Rotated operator()(const Rotated& in) const {
    const WaitRecorder recorder("rotate");
    const auto [q, k] = position->rotate(in.q, in.k, in.positions);
    return {q, k, in.positions};
  }
  std::shared_ptr<Position> position;
};

}  // namespace

void position_checks(const AddCheck& check) {
  check("shapes", "preserves the sizes and dtypes of q and k", [](const Subject& subject) {
    const Rotation rotate(subject);
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble})
      for (const int64_t length : {kLength, int64_t{1}}) {
        const Rotated in = inputs(dtype, length), out = rotate(in);
        require_like(out.q, in.q.sizes(), dtype, "the rotated q");
        require_like(out.k, in.k.sizes(), dtype, "the rotated k");
      }
    const double scale = rotate.position->softmax_scale();
    require(std::isfinite(scale) && scale > 0, "softmax_scale() is ", scale);
  });
  check("inputs", "neither modifies nor retains its arguments", [](const Subject& subject) {
    const Rotation rotate(subject);
    const Rotated in = inputs(at::kFloat);
    const Rotated original{in.q.clone(), in.k.clone(), in.positions.clone()};
    rotate(in);
    require(at::equal(in.q, original.q) && at::equal(in.k, original.k) &&
                at::equal(in.positions, original.positions),
            "rotate() modifies its arguments");
    require(in.q.use_count() == 1 && in.k.use_count() == 1 && in.positions.use_count() == 1,
            "rotate() keeps a reference to an argument after the result is freed");
  });
  check("leaves", "has no tensors that require gradients", [](const Subject& subject) {
    Rotated in = inputs(at::kFloat);
    in.q.requires_grad_();
    in.k.requires_grad_();
    const Rotated out = Rotation(subject)(in);
    require_declared_leaves(at::cat({out.q.flatten(), out.k.flatten()}),
                            {{"q", in.q}, {"k", in.k}});
  });
  check("tokens", "rotates each token based only on its position", [](const Subject& subject) {
    const Rotation rotate(subject);
    const Rotated in = inputs(at::kDouble), out = rotate(in);
    // Tokens may come in any order and rows may have any length: only a token's position matters.
    const at::Tensor order = at::tensor({7, 0, 3, 11, 5, 1}, at::kLong);
    const auto reordered = [&](const at::Tensor& tensor) { return tensor.index_select(1, order); };
    const Rotated some = rotate({reordered(in.q), reordered(in.k), reordered(in.positions)});
    require_close(some.q, reordered(out.q), 1e-12, "q of reordered tokens");
    require_close(some.k, reordered(out.k), 1e-12, "k of reordered tokens");
    const auto half = [](const at::Tensor& tensor) { return tensor.narrow(1, 0, 6); };
    const auto twice = [&](const at::Tensor& tensor) {
      return at::cat({half(tensor), half(tensor)}, 1);
    };
    const Rotated documents = rotate({twice(in.q), twice(in.k), twice(in.positions)});
    require_close(documents.q.narrow(1, 6, 6), half(out.q), 1e-12,
                  "q in a second document, in which positions restart at 0,");
  });
  // A rotation preserves lengths up to a constant factor and treats q and k alike, so the score of
  // identical vectors depends only on the distance between their positions.
  check("rotation", "makes scores depend only on relative positions", [](const Subject& subject) {
    const at::Tensor same =
        normal({1, 1, 1, kRotary}, 42).expand({1, kLength, 1, kRotary}).contiguous();
    const Rotated out = Rotation(subject)({same, same, at::arange(kLength).view({1, kLength})});
    const at::Tensor scores = out.q.squeeze(2).squeeze(0).mm(out.k.squeeze(2).squeeze(0).t());
    for (const int64_t distance : {0, 1}) {
      const at::Tensor diagonal = scores.diagonal(distance);
      require_close(diagonal, diagonal[0].expand_as(diagonal), 1e-9,
                    c10::str("the score of identical vectors ", distance,
                             " position(s) apart, compared across positions,"));
    }
  });
  check("length", "works beyond the training length", [](const Subject& subject) {
    const Rotation rotate(subject);
    const Rotated near = inputs(at::kFloat);
    Rotated far = inputs(at::kFloat);
    far.positions.add_(5000);
    require_like(rotate(far).q, far.q.sizes(), at::kFloat,
                 "the rotated q at positions far beyond the training length");
    // Growing the table of angles must not change its values for small positions.
    require_equal(rotate(near).q, Rotation(subject)(near).q,
                  "the rotated q at small positions after a call with large positions");
  });
  check("threads", "can be called from several threads at once", [](const Subject& subject) {
    const Rotation rotate(subject);
    const Rotated in = inputs(at::kFloat, 200);
    const at::Tensor expected = Rotation(subject)(in).q;
    for (const Rotated& out : on_four_threads([&] { return rotate(in); }))
      require_equal(out.q, expected, "the rotated q when several threads call rotate() at once");
  });
  check("gradients", "computes gradients that match central differences",
        [](const Subject& subject) {
          const Rotation rotate(subject);
          Rotated in = inputs(at::kDouble, 4);
          in.q.requires_grad_();
          in.k.requires_grad_();
          require_gradients(
              [&] {
                const Rotated out = rotate(in);
                return at::cat({out.q.flatten(), out.k.flatten()});
              },
              {{"q", in.q}, {"k", in.k}});
        });
  check("memory", "frees its memory", [](const Subject& subject) {
    const Rotation rotate(subject);
    require_steady_memory([&] {
      rotate(inputs(at::kFloat));
      Rotation another(subject);
    });
  });
  model_check(check);
  device_check(check, [](const Subject& subject) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const auto run = [&](at::Device device) {
        Rotated in = inputs(dtype);
        in.q = in.q.to(device).requires_grad_();
        in.k = in.k.to(device).requires_grad_();
        in.positions = in.positions.to(device);
        const Rotated out = Rotation(subject)(in);
        require_like(out.q, in.q.sizes(), dtype, "the rotated q", device);
        require_like(out.k, in.k.sizes(), dtype, "the rotated k", device);
        const NamedTensors from{{"q", in.q}, {"k", in.k}};
        return Computed{{{"the rotated q", out.q}, {"the rotated k", out.k}},
                        gradients_of(at::cat({out.q.flatten(), out.k.flatten()}), from)};
      };
      const Computed on_cpu = run(at::kCPU), on_gpu = run(subject.device);
      require_same_on_device(on_gpu, on_cpu, subject.device, dtype);
    }
  });
}

}  // namespace dsv3::conformance
