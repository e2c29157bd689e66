#include "call/checked.h"

#include <array>
#include <exception>
#include <numeric>

#include <ATen/ATen.h>

#include "call/backward.h"

namespace dsv3 {

constinit std::atomic<Watch*> Watch::active{nullptr};

namespace checked {

void fail(const std::string& text, ExitCode code) {
  throw Error(text, code);
}

namespace {

std::string described(const at::Tensor& tensor) {
  return c10::str(tensor.sizes(), " ", tensor.scalar_type(), " on ", tensor.device());
}

void require_like(const at::Tensor& result, const at::Tensor& input, const char* name) {
  if (!result.defined()) fail(std::string("returned an undefined tensor for ") + name);
  if (result.sizes() != input.sizes() || result.scalar_type() != input.scalar_type() ||
      result.device() != input.device())
    fail("received " + described(input) + " and returned " + described(result) + " for " + name +
         "; shape, dtype and device must not change");
}

/// Registers backward hooks for a forward pass. If a Watch is active, reports the inputs and
/// outputs to it.
void forwarded(const Pluggable& component, at::TensorList inputs, at::TensorList outputs) {
  mark_forward(inputs, outputs);
  const Callee* callee = component.callee();
  Watch* watch = Watch::active.load(std::memory_order_relaxed);
  if (!watch || !callee) return;
  std::string name = callee->label + (callee->origin.empty() ? "" : ", " + callee->origin);
  if (!callee->module.empty()) name = callee->module + " (" + name + ")";
  watch->passed(name, inputs, outputs);
}

/// Number of tokens in the layer's cache, summed over rows.
int64_t cached_tokens(const Sequence& seq) {
  if (!seq.cache) return 0;
  const std::vector<int64_t>& lengths = seq.cache->lengths();
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

void require_fp32(const Range& range, const at::Tensor& value, const char* name) {
  const int64_t elements = range.end - range.begin;
  if (!value.defined() || value.scalar_type() != at::kFloat || value.numel() != elements)
    fail(std::string(name) + "() did not return an fp32 tensor of " + std::to_string(elements) +
         " elements for " + range.name);
}

at::Tensor checked_rows(const at::Tensor& rows, const DataContext& context, const char* name) {
  const std::array<int64_t, 2> shape{context.micro_batch, context.sequence + 1};
  const at::IntArrayRef sizes = shape;
  if (!rows.device().is_cpu() || rows.scalar_type() != at::kLong || rows.sizes() != sizes)
    fail(std::string("its ") + name + " are " + described(rows) + "; they must be " +
             c10::str("int64 ", sizes) + " on the CPU",
         ExitCode::data);
  return rows.contiguous();
}

}  // namespace

template <class Layer>
at::Tensor forward(Layer& layer, const at::Tensor& x, const Sequence& seq) {
  return call(layer, "forward", [&](Layer& l) {
    const int64_t before = cached_tokens(seq);
    at::Tensor y = l.forward(x, seq);
    require_like(y, x, "x");
    forwarded(l, {x}, {y});
    const int64_t appended = cached_tokens(seq) - before;
    if (std::is_same_v<Layer, Attention> && seq.cache && appended != x.size(1))
      fail("appended " + std::to_string(appended) + " tokens to the cache instead of the " +
           std::to_string(x.size(1)) + " it received");
    return y;
  });
}
template at::Tensor forward(Attention&, const at::Tensor&, const Sequence&);
template at::Tensor forward(FeedForward&, const at::Tensor&, const Sequence&);

std::pair<at::Tensor, at::Tensor> rotate(const Position& position, const at::Tensor& q,
                                         const at::Tensor& k, const at::Tensor& positions) {
  return call(position, "rotate", [&](const Position& p) {
    std::pair<at::Tensor, at::Tensor> rotated = p.rotate(q, k, positions);
    require_like(rotated.first, q, "q");
    require_like(rotated.second, k, "k");
    forwarded(p, {q, k}, {rotated.first, rotated.second});
    return rotated;
  });
}

at::Tensor step_counts(Component& layer) {
  return call(layer, "step_counts", [](Component& c) {
    at::Tensor counts = c.step_counts();
    if (counts.defined() && (counts.scalar_type() != at::kLong || counts.dim() != 1))
      fail("step_counts() is " + described(counts) + "; it must be a one-dimensional int64 tensor");
    return counts;
  });
}

int adopt(Strategy& strategy, UnitSpec unit, int unit_index) {
  return call(strategy, "adopt", [&](Strategy& s) {
    const int index = s.adopt(std::move(unit));
    if (index != unit_index)
      fail("adopt() returned index " + std::to_string(index) + " for unit " +
           std::to_string(unit_index) + "; indices must be consecutive and start at 0");
    return index;
  });
}

void backward(Strategy& strategy, at::TensorList roots) {
  leave_backward();
  call(strategy, kBackward, [&](Strategy& s) {
    try {
      s.backward(roots, {});
    } catch (...) {
      const Callee* callee = current_backward.callee.exchange(nullptr);
      if (!callee) throw;
      rethrow_named(*callee, current_backward.layer, kBackward);
    }
  });
  leave_backward();
}

at::Tensor grad_norm(Strategy& strategy, at::Device device) {
  return call(strategy, "grad_norm", [&](Strategy& s) {
    const at::Tensor norm = s.grad_norm();
    if (!norm.defined() || norm.dim() != 0 || norm.scalar_type() != at::kDouble ||
        norm.device() != device)
      fail("grad_norm() is " + (norm.defined() ? described(norm) : "undefined") +
           "; it must be a float64 scalar on " + device.str());
    if (norm.is_cpu() && norm.item<double>() < 0)
      fail("grad_norm() is " + std::to_string(norm.item<double>()));
    return norm;
  });
}

void update(Strategy& strategy, int group, const std::function<void(std::span<UpdateTensor>)>& fn) {
  exchange(strategy, group, [&](std::span<UpdateTensor> tensors) {
    for (const UpdateTensor& tensor : tensors) require_fp32(tensor.range, tensor.grad, "update");
    fn(tensors);
  });
}

void exchange(Strategy& strategy, int group,
              const std::function<void(std::span<UpdateTensor>)>& fn) {
  call(strategy, "update", [&](Strategy& s) {
    s.update(group, [&](std::span<UpdateTensor> tensors) {
      for (const UpdateTensor& tensor : tensors) require_fp32(tensor.range, tensor.value, "update");
      fn(tensors);
    });
  });
}

std::vector<OwnedTensor> owned(Strategy& strategy) {
  return call(strategy, "owned", [](Strategy& s) {
    std::vector<OwnedTensor> owned = s.owned();
    for (const OwnedTensor& tensor : owned) require_fp32(tensor.range, tensor.value, "owned");
    return owned;
  });
}

at::Tensor evaluation_weights(const Optimizer& optimizer, const Slice& slice) {
  return call(optimizer, "evaluation_weights", [&](const Optimizer& o) {
    at::Tensor weights = o.evaluation_weights(slice);
    require_like(weights, slice.value, slice.range.name.c_str());
    return weights;
  });
}

Batch next(Data& data, const DataContext& context) {
  return call(data, "next", [&](Data& d) {
    Batch batch = d.next();
    if (!batch.tokens.defined()) {
      if (context.split == Split::train)
        fail("returned no tokens (an undefined tensor); a training stream must not end",
             ExitCode::data);
      return batch;
    }
    batch.tokens = checked_rows(batch.tokens, context, "tokens");
    if (batch.document_ids.defined())
      batch.document_ids = checked_rows(batch.document_ids, context, "document ids");
    // Uses a plain loop, because LibTorch operators would start a second thread pool for the
    // loader's thread.
    const int64_t* ids = batch.tokens.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < batch.tokens.numel(); ++i)
      if (ids[i] < 0 || (context.vocab > 0 && ids[i] >= context.vocab))
        fail("returned token id " + std::to_string(ids[i]) + "; the model's vocabulary has " +
                 std::to_string(context.vocab) + " ids (model.vocab)",
             ExitCode::data);
    return batch;
  });
}

namespace {

/// Calls `f(tracker)`, and rethrows RetryAfter unchanged.
template <class F>
void call_tracker(Tracker& tracker, const char* action, const F& f) {
  std::exception_ptr answer;
  call(tracker, action, [&](Tracker& t) {
    try {
      f(t);
    } catch (const RetryAfter&) {
      answer = std::current_exception();
    }
  });
  if (answer) std::rethrow_exception(answer);
}

}  // namespace

std::string inactive(Tracker& tracker) {
  return call(tracker, "inactive", [](const Tracker& t) { return t.inactive(); });
}

void check(Tracker& tracker, const RunInfo& run) {
  call(tracker, "check", [&](Tracker& t) { t.check(run); });
}

void start(Tracker& tracker, const RunInfo& run) {
  call_tracker(tracker, "start", [&](Tracker& t) { t.start(run); });
}

void deliver(Tracker& tracker, std::span<const Event> events) {
  call_tracker(tracker, "deliver", [&](Tracker& t) { t.deliver(events); });
}

void record(Tracker& tracker, std::span<const Record> records) {
  call_tracker(tracker, "record", [&](Tracker& t) { t.record(records); });
}

void finish(Tracker& tracker, RunStatus status) {
  call_tracker(tracker, "finish", [&](Tracker& t) { t.finish(status); });
}

void upload(Tracker& tracker, const std::filesystem::path& file, const Record& record) {
  call_tracker(tracker, "upload", [&](Tracker& t) { t.upload(file, record); });
}

void upload_checkpoint(Tracker& tracker, const std::filesystem::path& folder,
                       const Record& checkpoint) {
  call_tracker(tracker, "upload_checkpoint",
               [&](Tracker& t) { t.upload_checkpoint(folder, checkpoint); });
}

std::string download(Tracker& tracker, const std::string& id, const std::filesystem::path& folder) {
  return call(tracker, "download", [&](Tracker& t) { return t.download(id, folder); });
}

bool uploads(Tracker& tracker) {
  return call(tracker, "uploads", [](const Tracker& t) { return t.uploads(); });
}

bool uploads_checkpoint(Tracker& tracker, const Record& checkpoint) {
  return call(tracker, "uploads_checkpoint",
              [&](const Tracker& t) { return t.uploads_checkpoint(checkpoint); });
}

nlohmann::json config(const Format& format, const ModelDescription& model, const TokenIds& ids) {
  return call(format, "config", [&](const Format& f) {
    nlohmann::json config = f.config(model, ids);
    if (!config.is_object()) fail("config() did not return a JSON object");
    return config;
  });
}

}  // namespace checked
}  // namespace dsv3
