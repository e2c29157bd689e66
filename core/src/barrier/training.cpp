// Guards of the components around the model.
#include <cmath>
#include <optional>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

#include "barrier/guard.h"

namespace dsv3::barrier {
namespace {

class GuardedOptimizer final : public Optimizer {
 public:
  GuardedOptimizer(const Callee& callee, std::shared_ptr<Optimizer> inner)
      : inner_(callee, std::move(inner)) {}
  bool whole_matrices() const override {
    return inner_.call("whole_matrices", [](Optimizer& o) { return o.whole_matrices(); });
  }
  std::vector<StateSlot> slots() const override {
    return inner_.call("slots", [](Optimizer& o) { return o.slots(); });
  }
  void step(std::span<const Slice> slices, const OptimStep& step) override {
    inner_.call("step", [&](Optimizer& o) { o.step(slices, step); });
  }
  double lr() const override {
    return inner_.call("lr", [](Optimizer& o) {
      const double lr = o.lr();
      if (!std::isfinite(lr) || lr < 0) refuse("lr() is " + std::to_string(lr));
      return lr;
    });
  }

 private:
  Guarded<Optimizer> inner_;
};

class GuardedSchedule final : public Schedule {
 public:
  GuardedSchedule(const Callee& callee, std::shared_ptr<Schedule> inner)
      : inner_(callee, std::move(inner)) {}
  double factor(int64_t step, int64_t total) const override {
    return inner_.call("factor", [&](Schedule& s) {
      const double factor = s.factor(step, total);
      if (!std::isfinite(factor) || factor < 0)
        refuse("factor(" + std::to_string(step) + ", " + std::to_string(total) + ") is " +
               std::to_string(factor) + "; a finite number, 0 or more, is wanted");
      return factor;
    });
  }

 private:
  Guarded<Schedule> inner_;
};

class GuardedStrategy final : public Strategy {
 public:
  GuardedStrategy(const Callee& callee, std::shared_ptr<Strategy> inner)
      : inner_(callee, std::move(inner)) {
    watch_backward();
  }
  int adopt(UnitSpec unit) override {
    return inner_.call("adopt", [&](Strategy& s) {
      const int index = s.adopt(std::move(unit));
      if (index != units_)
        refuse("adopt() gave index " + std::to_string(index) + " to unit " +
               std::to_string(units_) + "; indices count the units in their order");
      ++units_;
      return index;
    });
  }
  void ready(const std::vector<GroupSpec>& groups) override {
    inner_.call("ready", [&](Strategy& s) { s.ready(groups); });
  }
  void begin_microbatch(bool last) override {
    inner_.call("begin_microbatch", [&](Strategy& s) { s.begin_microbatch(last); });
  }
  void enter(int unit, TensorRefs inputs) override {
    inner_.call("enter", [&](Strategy& s) { s.enter(unit, inputs); });
  }
  void leave(int unit, TensorRefs outputs) override {
    inner_.call("leave", [&](Strategy& s) { s.leave(unit, outputs); });
  }
  void backward(at::TensorList roots, at::TensorList grads) override {
    const InCall call(inner_.callee(), kBackward);
    forget_failed_node();
    try {
      inner_.object().backward(roots, grads);
    } catch (...) {
      rethrow_from_backward(call);
    }
  }
  double grad_norm() override {
    return inner_.call("grad_norm", [](Strategy& s) {
      const double norm = s.grad_norm();
      if (norm < 0) refuse("grad_norm() is " + std::to_string(norm));
      return norm;
    });
  }
  void scale_grads(double factor) override {
    inner_.call("scale_grads", [&](Strategy& s) { s.scale_grads(factor); });
  }
  void update(int group, const std::function<void(std::span<UpdateTensor>)>& fn) override {
    inner_.call("update", [&](Strategy& s) {
      s.update(group, [&](std::span<UpdateTensor> tensors) {
        for (const UpdateTensor& each : tensors) check(each);
        fn(tensors);
      });
    });
  }
  void end_step() override {
    inner_.call("end_step", [](Strategy& s) { s.end_step(); });
  }
  std::vector<Range> update_ranges(int group) const override {
    return inner_.call("update_ranges", [&](Strategy& s) { return s.update_ranges(group); });
  }
  std::vector<OwnedTensor> owned() override {
    return inner_.call("owned", [](Strategy& s) {
      std::vector<OwnedTensor> owned = s.owned();
      for (const OwnedTensor& each : owned) check(each.range, each.value, "owned");
      return owned;
    });
  }
  void loaded() override {
    inner_.call("loaded", [](Strategy& s) { s.loaded(); });
  }
  Cost estimate(std::span<const UnitSpec> units, int ranks) const override {
    return inner_.call("estimate", [&](Strategy& s) { return s.estimate(units, ranks); });
  }

 private:
  static void check(const Range& range, const at::Tensor& value, const char* name) {
    const bool fits = value.defined() && value.scalar_type() == at::kFloat &&
                      value.numel() == range.end - range.begin;
    if (!fits)
      refuse(std::string(name) + "() gave no fp32 tensor of " +
             std::to_string(range.end - range.begin) + " elements for " + range.name);
  }
  static void check(const UpdateTensor& each) {
    check(each.range, each.value, "update");
    check(each.range, each.grad, "update");
  }

  Guarded<Strategy> inner_;
  int units_ = 0;
};

class GuardedTracker final : public Tracker {
 public:
  GuardedTracker(const Callee& callee, std::shared_ptr<Tracker> inner)
      : inner_(callee, std::move(inner)) {}
  void start(const RunInfo& run) override {
    inner_.call("start", [&](Tracker& t) { t.start(run); });
  }
  void deliver(std::span<const Event> events) override {
    inner_.call("deliver", [&](Tracker& t) { t.deliver(events); });
  }
  void finish(RunStatus status) override {
    inner_.call("finish", [&](Tracker& t) { t.finish(status); });
  }

 private:
  Guarded<Tracker> inner_;
};

class GuardedData final : public Data {
 public:
  GuardedData(const Callee& callee, std::shared_ptr<Data> inner, const DataContext& context)
      : inner_(callee, std::move(inner)), context_(context) {}
  Batch next() override {
    return inner_.call("next", [&](Data& d) { return checked(d.next()); });
  }
  nlohmann::json state() const override {
    return inner_.call("state", [](Data& d) { return d.state(); });
  }
  void load_state(const nlohmann::json& state) override {
    inner_.call("load_state", [&](Data& d) { d.load_state(state); });
  }

 private:
  [[noreturn]] static void refuse(const std::string& text) { throw Error(text, ExitCode::data); }

  static std::string described(const at::Tensor& tensor) {
    return c10::str(tensor.sizes(), " of ", tensor.scalar_type(), " on ", tensor.device());
  }

  at::Tensor checked(const at::Tensor& tensor, const char* name) const {
    const bool fits =
        tensor.device().is_cpu() && tensor.scalar_type() == at::kLong &&
        tensor.sizes() == at::IntArrayRef{context_.micro_batch, context_.sequence + 1};
    if (!fits)
      refuse(std::string("its ") + name + " are " + described(tensor) + "; int64 [" +
             std::to_string(context_.micro_batch) + ", " + std::to_string(context_.sequence + 1) +
             "] on the host is wanted");
    return tensor.contiguous();
  }

  Batch checked(Batch batch) const {
    if (!batch.tokens.defined()) {
      if (context_.split == Split::train)
        refuse("it gave no tokens (undefined); a training stream has no end");
      return batch;
    }
    batch.tokens = checked(batch.tokens, "tokens");
    if (batch.document_ids.defined())
      batch.document_ids = checked(batch.document_ids, "document ids");
    // A plain loop: LibTorch's operators would start a second set of threads for the data's thread.
    const int64_t* ids = batch.tokens.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < batch.tokens.numel(); ++i)
      if (ids[i] < 0 || (context_.vocab > 0 && ids[i] >= context_.vocab))
        refuse("it gave token id " + std::to_string(ids[i]) + "; the model's vocabulary has " +
               std::to_string(context_.vocab) + " ids (model.vocab)");
    return batch;
  }

  Guarded<Data> inner_;
  DataContext context_;
};

class GuardedTokenizer final : public Tokenizer {
 public:
  GuardedTokenizer(const Callee& callee, std::shared_ptr<Tokenizer> inner)
      : inner_(callee, std::move(inner)) {}
  std::vector<int32_t> encode(std::string_view text) const override {
    return inner_.call("encode", [&](Tokenizer& t) {
      std::vector<int32_t> ids = t.encode(text);
      const int64_t vocab = t.vocab_size();
      for (const int32_t id : ids)
        if (id < 0 || id >= vocab)
          refuse("encode() gave id " + std::to_string(id) + "; its vocab_size() is " +
                 std::to_string(vocab));
      return ids;
    });
  }
  std::string decode(std::span<const int32_t> ids) const override {
    return inner_.call("decode", [&](Tokenizer& t) { return t.decode(ids); });
  }
  std::string token_bytes(int32_t id) const override {
    return inner_.call("token_bytes", [&](Tokenizer& t) { return t.token_bytes(id); });
  }
  int64_t vocab_size() const override {
    return inner_.call("vocab_size", [](Tokenizer& t) {
      const int64_t size = t.vocab_size();
      if (size < 1) refuse("vocab_size() is " + std::to_string(size));
      return size;
    });
  }
  int32_t eos_id() const override {
    return inner_.call("eos_id", [](Tokenizer& t) {
      const int32_t id = t.eos_id();
      if (id < -1 || id >= t.vocab_size())
        refuse("eos_id() is " + std::to_string(id) + "; -1 or an id below vocab_size(), " +
               std::to_string(t.vocab_size()) + ", is wanted");
      return id;
    });
  }
  std::string digest() const override {
    return inner_.call("digest", [](Tokenizer& t) { return t.digest(); });
  }
  std::map<std::string, std::string> files() const override {
    return inner_.call("files", [](Tokenizer& t) { return t.files(); });
  }

 private:
  Guarded<Tokenizer> inner_;
};

class GuardedFormat final : public Format {
 public:
  GuardedFormat(const Callee& callee, std::shared_ptr<Format> inner)
      : inner_(callee, std::move(inner)) {}
  std::vector<std::string> obstacles(const ModelDescription& model) const override {
    return inner_.call("obstacles", [&](Format& f) { return f.obstacles(model); });
  }
  nlohmann::json config(const ModelDescription& model, const TokenIds& ids) const override {
    return inner_.call("config", [&](Format& f) {
      nlohmann::json config = f.config(model, ids);
      if (!config.is_object()) refuse("config() is no JSON object");
      return config;
    });
  }
  ModelDescription describe(const nlohmann::json& config) const override {
    // Its dsv3::Error is about the file, not about the plugin.
    std::optional<Error> mistake;
    ModelDescription model = inner_.call("describe", [&](Format& f) -> ModelDescription {
      try {
        return f.describe(config);
      } catch (const Error& error) {
        mistake = error;
        return {};
      }
    });
    if (mistake) throw Error(*mistake);
    return model;
  }
  std::vector<TensorPlace> tensors(const ModelDescription& model) const override {
    return inner_.call("tensors", [&](Format& f) { return f.tensors(model); });
  }
  std::vector<nlohmann::json> examples() const override {
    return inner_.call("examples", [](Format& f) { return f.examples(); });
  }

 private:
  Guarded<Format> inner_;
};

}  // namespace

std::shared_ptr<Optimizer> guard(const Callee& callee, std::shared_ptr<Optimizer> inner) {
  return std::make_shared<GuardedOptimizer>(callee, std::move(inner));
}

std::shared_ptr<Schedule> guard(const Callee& callee, std::shared_ptr<Schedule> inner) {
  return std::make_shared<GuardedSchedule>(callee, std::move(inner));
}

std::shared_ptr<Strategy> guard(const Callee& callee, std::shared_ptr<Strategy> inner,
                                const StrategyContext&) {
  return std::make_shared<GuardedStrategy>(callee, std::move(inner));
}

std::shared_ptr<Tracker> guard(const Callee& callee, std::shared_ptr<Tracker> inner,
                               const RunContext&) {
  return std::make_shared<GuardedTracker>(callee, std::move(inner));
}

std::shared_ptr<Data> guard(const Callee& callee, std::shared_ptr<Data> inner,
                            const DataContext& context) {
  return std::make_shared<GuardedData>(callee, std::move(inner), context);
}

std::shared_ptr<Tokenizer> guard(const Callee& callee, std::shared_ptr<Tokenizer> inner,
                                 const TokenizerContext&) {
  return std::make_shared<GuardedTokenizer>(callee, std::move(inner));
}

std::shared_ptr<Format> guard(const Callee& callee, std::shared_ptr<Format> inner) {
  return std::make_shared<GuardedFormat>(callee, std::move(inner));
}

}  // namespace dsv3::barrier
