// Guards of the components that make up the model.
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>

#include "barrier/guard.h"
#include "barrier/watch.h"

namespace dsv3::barrier {

constinit thread_local Watch* watch = nullptr;

Watch::Watch() {
  watch = this;
}
Watch::~Watch() {
  watch = nullptr;
}

void refuse(const std::string& text) {
  throw Error(text, ExitCode::plugin);
}

namespace {

std::string described(const at::Tensor& tensor) {
  return c10::str(tensor.sizes(), " ", tensor.scalar_type(), " on ", tensor.device());
}

/// `got` if it is like `given`, as layers and rotations promise.
const at::Tensor& like(const at::Tensor& got, const at::Tensor& given, const char* name) {
  if (!got.defined()) refuse(std::string("it gave back no tensor for ") + name + " (undefined)");
  if (got.sizes() != given.sizes() || got.scalar_type() != given.scalar_type() ||
      got.device() != given.device())
    refuse("it got " + described(given) + " and gave back " + described(got) + " for " + name +
           "; shape, dtype and device must stay");
  return got;
}

void show(const Callee& callee, at::TensorList inputs, at::TensorList outputs) {
  std::string name = callee.label + (callee.origin.empty() ? "" : ", " + callee.origin);
  if (!callee.module.empty()) name = callee.module + " (" + name + ")";
  watch->passed(name, inputs, outputs);
}

/// What a layer made of x, if it is like x.
at::Tensor passed(const Callee& callee, const at::Tensor& x, const at::Tensor& y) {
  like(y, x, "x");
  if (watch) show(callee, {x}, {y});
  return y;
}

int64_t not_negative(int64_t value, const char* name) {
  if (value < 0) refuse(std::string(name) + "() is " + std::to_string(value));
  return value;
}

/// Tokens in the layer's cache, all rows together.
int64_t held_by(const Sequence& seq) {
  if (!seq.cache) return 0;
  const std::vector<int64_t>& lengths = seq.cache->lengths();
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

class GuardedAttention final : public Attention {
 public:
  GuardedAttention(const Callee& callee, std::shared_ptr<Attention> inner,
                   const LayerContext& context)
      : Attention(context), inner_(callee, std::move(inner)) {}
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    return inner_.call("forward", [&](Attention& a) {
      const int64_t held = held_by(seq);
      at::Tensor y = passed(inner_.callee(), x, a.forward(x, seq));
      const int64_t added = seq.cache ? held_by(seq) - held : x.size(1);
      if (added != x.size(1))
        refuse("it appended " + std::to_string(added) + " tokens to the cache, not the " +
               std::to_string(x.size(1)) + " that it got");
      return y;
    });
  }
  double attention_flops(int64_t seq) const override {
    return inner_.call("attention_flops", [&](Attention& a) { return a.attention_flops(seq); });
  }
  int64_t cache_values_per_token() const override {
    constexpr const char* kName = "cache_values_per_token";
    return inner_.call(
        kName, [&](Attention& a) { return not_negative(a.cache_values_per_token(), kName); });
  }
  int64_t saved_values_per_token(int64_t seq) const override {
    constexpr const char* kName = "saved_values_per_token";
    return inner_.call(
        kName, [&](Attention& a) { return not_negative(a.saved_values_per_token(seq), kName); });
  }

 private:
  Guarded<Attention> inner_;
};

class GuardedFeedForward final : public FeedForward {
 public:
  GuardedFeedForward(const Callee& callee, std::shared_ptr<FeedForward> inner,
                     const LayerContext& context)
      : FeedForward(context), inner_(callee, std::move(inner)) {}
  at::Tensor forward(const at::Tensor& x, const Sequence& seq) override {
    return inner_.call(
        "forward", [&](FeedForward& f) { return passed(inner_.callee(), x, f.forward(x, seq)); });
  }
  at::Tensor step_counts() override {
    return inner_.call("step_counts", [](FeedForward& f) {
      at::Tensor counts = f.step_counts();
      if (counts.defined() && (counts.scalar_type() != at::kLong || counts.dim() != 1))
        refuse("step_counts() is " + described(counts) + "; int64 of one dimension is wanted");
      return counts;
    });
  }
  void on_step_end(const StepEnd& end) override {
    inner_.call("on_step_end", [&](FeedForward& f) { f.on_step_end(end); });
  }
  int64_t saved_values_per_token() const override {
    constexpr const char* kName = "saved_values_per_token";
    return inner_.call(
        kName, [&](FeedForward& f) { return not_negative(f.saved_values_per_token(), kName); });
  }

 private:
  Guarded<FeedForward> inner_;
};

class GuardedPosition final : public Position {
 public:
  GuardedPosition(const Callee& callee, std::shared_ptr<Position> inner)
      : inner_(callee, std::move(inner)) {}
  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& positions) const override {
    return inner_.call("rotate", [&](Position& p) {
      std::pair<at::Tensor, at::Tensor> rotated = p.rotate(q, k, positions);
      like(rotated.first, q, "q");
      like(rotated.second, k, "k");
      if (watch) show(inner_.callee(), {q, k}, {rotated.first, rotated.second});
      return rotated;
    });
  }
  double softmax_scale() const override {
    return inner_.call("softmax_scale", [](Position& p) {
      const double scale = p.softmax_scale();
      if (!std::isfinite(scale) || scale <= 0)
        refuse("softmax_scale() is " + std::to_string(scale) +
               "; a finite number above 0 is wanted");
      return scale;
    });
  }

 private:
  Guarded<Position> inner_;
};

}  // namespace

std::shared_ptr<Attention> guard(const Callee& callee, std::shared_ptr<Attention> inner,
                                 const LayerContext& context) {
  return std::make_shared<GuardedAttention>(callee, std::move(inner), context);
}

std::shared_ptr<FeedForward> guard(const Callee& callee, std::shared_ptr<FeedForward> inner,
                                   const LayerContext& context) {
  return std::make_shared<GuardedFeedForward>(callee, std::move(inner), context);
}

std::shared_ptr<Position> guard(const Callee& callee, std::shared_ptr<Position> inner,
                                const PositionContext&) {
  return std::make_shared<GuardedPosition>(callee, std::move(inner));
}

}  // namespace dsv3::barrier
