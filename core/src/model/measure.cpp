#include "model/measure.h"

#include <algorithm>
#include <atomic>
#include <memory>

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <torch/csrc/autograd/autograd.h>

#include <dsv3/sdk/error.h>

#include "call/backward.h"
#include "call/call.h"
#include "machine/machine.h"
#include "ops/meta_kernels.h"

namespace dsv3 {
namespace {

/// Counts the bytes that the meta tensors of one thread would need, if they had data.
class MemoryCounter {
 public:
  MemoryCounter();
  ~MemoryCounter() { active = nullptr; }
  MemoryCounter(const MemoryCounter&) = delete;
  MemoryCounter& operator=(const MemoryCounter&) = delete;

  void add(int64_t bytes) {
    live_ += bytes;
    peak_ = std::max(peak_, live_);
  }
  int64_t peak() const { return peak_; }
  uint64_t id() const { return id_; }

  static thread_local MemoryCounter* active;

 private:
  int64_t live_ = 0, peak_ = 0;
  uint64_t id_;
};

thread_local MemoryCounter* MemoryCounter::active = nullptr;

/// Replaces LibTorch's allocator for meta tensors, which does not allocate anything either, and
/// reports each block to the active counter.
class MetaAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    MemoryCounter* counter = MemoryCounter::active;
    if (!counter || bytes == 0) return {nullptr, nullptr, &release, at::kMeta};
    constexpr int64_t kUnit = 512;  // CUDA's allocator rounds up to multiples of it
    const int64_t size = (int64_t(bytes) + kUnit - 1) / kUnit * kUnit;
    counter->add(size);
    return {nullptr, new Block{size, counter->id()}, &release, at::kMeta};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void*, const void*, size_t) const override {}

 private:
  struct Block {
    int64_t size;
    uint64_t counter;
  };

  /// Blocks may outlive their counter, because components may keep tensors.
  static void release(void* context) {
    const std::unique_ptr<const Block> block(static_cast<const Block*>(context));
    MemoryCounter* counter = MemoryCounter::active;
    if (block && counter && counter->id() == block->counter) counter->add(-block->size);
  }
};

MemoryCounter::MemoryCounter() {
  static MetaAllocator allocator;
  [[maybe_unused]] static const bool installed = [] {
    c10::SetAllocator(at::kMeta, &allocator, /*priority=*/1);
    return true;
  }();
  static std::atomic<uint64_t> counters{0};
  id_ = ++counters;
  active = this;
}

/// Returns a micro-batch whose rows contain two documents, or one if `packed` is false.
Batch batch_of(int64_t rows, int64_t sequence, bool packed) {
  Batch batch;
  batch.tokens = at::zeros({rows, sequence + 1}, at::kLong);
  if (!packed || sequence < 2) return batch;
  batch.document_ids = at::zeros_like(batch.tokens);
  batch.document_ids.narrow(1, sequence / 2, sequence + 1 - sequence / 2).fill_(1);
  return batch;
}

/// LibTorch's message up to its advice for users of Python.
std::string first_sentence(const std::string& text) {
  return text.substr(0, std::min(text.find(". "), text.find('\n')));
}

void run(Model& model, const Batch& batch) try {
  const MetaKernels kernels;
  const LossParts parts = model.loss(batch, {});
  torch::autograd::backward({parts.total}, {});
  leave_backward();
} catch (const c10::Error& error) {
  throw Error(first_sentence(error.what_without_backtrace()), ExitCode::plugin);
} catch (...) {
  throw Error(first_sentence(current_exception_text()), ExitCode::plugin);
}

}  // namespace

Flops Measurement::flops_per_token() const {
  Experiment experiment = experiment_;
  experiment.model.recompute = "none";  // recomputation does not count as part of a model's FLOPs
  Model model(experiment, vocab_, factory_, at::kMeta);
  const FlopCounter counter;
  run(model, batch_of(1, experiment.train.sequence, /*packed=*/false));
  const double tokens = double(experiment.train.sequence);
  return {counter.total().all / tokens, counter.total().causal / tokens};
}

int64_t Measurement::activation_bytes(int64_t rows, at::DeviceType device, bool recompute) const {
  Experiment experiment = experiment_;
  experiment.model.recompute = recompute ? "full" : "none";
  const SimulatedDevice simulated(device);
  Model model(experiment, vocab_, factory_, at::kMeta, compute_dtype(experiment.train));
  // As under a strategy, gradients exist before the first backward pass.
  for (const Parameter& parameter : model.store().parameters())
    parameter.tensor.mutable_grad() =
        at::empty(parameter.tensor.sizes(), parameter.tensor.options().dtype(at::kFloat));
  const MemoryCounter counter;
  run(model, batch_of(rows, experiment.train.sequence, /*packed=*/true));
  return counter.peak();
}

}  // namespace dsv3
