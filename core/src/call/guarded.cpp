// Wraps the components that dsv3::make returns.
#include <dsv3/sdk/tokenizer.h>

#include "call/checked.h"

namespace dsv3 {
namespace {

/// Wraps a position encoding, because attention plugins call it directly rather than through
/// `call`.
class GuardedPosition final : public Position {
 public:
  explicit GuardedPosition(std::shared_ptr<Position> inner) : inner_(std::move(inner)) {}
  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& positions) const override {
    return checked::rotate(*inner_, q, k, positions);
  }
  double softmax_scale() const override {
    return call(*inner_, "softmax_scale", [](const Position& p) {
      const double scale = p.softmax_scale();
      if (!std::isfinite(scale) || scale <= 0)
        checked::fail("softmax_scale() is " + std::to_string(scale) +
                      "; it must be finite and above 0");
      return scale;
    });
  }
  void on_step_end(const StepEnd& end) override {
    call(*inner_, "on_step_end", &Position::on_step_end, end);
  }

 private:
  std::shared_ptr<Position> inner_;
};

/// Wraps a tokenizer, because data plugins call it directly rather than through `call`, on several
/// threads.
class GuardedTokenizer final : public Tokenizer {
 public:
  explicit GuardedTokenizer(std::shared_ptr<Tokenizer> inner) : inner_(std::move(inner)) {}
  std::vector<int32_t> encode(std::string_view text) const override {
    return call(*inner_, "encode", [&](const Tokenizer& t) {
      std::vector<int32_t> ids = t.encode(text);
      const int64_t vocab = t.vocab_size();
      for (const int32_t id : ids)
        if (id < 0 || id >= vocab)
          checked::fail("encode() returned id " + std::to_string(id) + ", but vocab_size() is " +
                        std::to_string(vocab));
      return ids;
    });
  }
  std::string decode(std::span<const int32_t> ids) const override {
    return call(*inner_, "decode", &Tokenizer::decode, ids);
  }
  std::string token_bytes(int32_t id) const override {
    return call(*inner_, "token_bytes", &Tokenizer::token_bytes, id);
  }
  int64_t vocab_size() const override {
    return call(*inner_, "vocab_size", [](const Tokenizer& t) {
      const int64_t size = t.vocab_size();
      if (size < 1) checked::fail("vocab_size() is " + std::to_string(size));
      return size;
    });
  }
  int32_t eos_id() const override {
    return call(*inner_, "eos_id", [](const Tokenizer& t) {
      const int32_t id = t.eos_id();
      if (id < -1 || id >= t.vocab_size())
        checked::fail("eos_id() is " + std::to_string(id) +
                      "; it must be -1 or less than vocab_size(), " +
                      std::to_string(t.vocab_size()));
      return id;
    });
  }
  std::string digest() const override { return call(*inner_, "digest", &Tokenizer::digest); }
  std::map<std::string, std::string> files() const override {
    return call(*inner_, "files", &Tokenizer::files);
  }

 private:
  std::shared_ptr<Tokenizer> inner_;
};

}  // namespace

std::shared_ptr<Pluggable> guarded(const Callee& callee, std::shared_ptr<Pluggable> component) {
  component->set_callee(callee);
  Pluggable* const object = component.get();
  const std::shared_ptr<Pluggable> owner(
      object, [&callee, component = std::move(component)](Pluggable*) mutable {
        const CallRecord call(callee, "destructor");
        component.reset();
      });
  if (auto position = std::dynamic_pointer_cast<Position>(owner))
    return std::make_shared<GuardedPosition>(std::move(position));
  if (auto tokenizer = std::dynamic_pointer_cast<Tokenizer>(owner))
    return std::make_shared<GuardedTokenizer>(std::move(tokenizer));
  return owner;
}

}  // namespace dsv3
