// --dry-run: estimates an experiment's requirements on the meta device.
#include <algorithm>
#include <fmt/ostream.h>
#include <iostream>

#include <dsv3/runtime/quantities.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/ops.h>

#include "call/checked.h"
#include "eval/validation.h"
#include "machine/machine.h"
#include "support/host.h"
#include "train/memory.h"
#include "train/training.h"

namespace dsv3 {
namespace {

/// Assumed fraction of the measured or nominal matmul rate that a training step reaches.
constexpr double kUtilisation = 0.4;

/// This machine's FLOP/s: the nominal rate of a GPU, or the rate that matmuls of about 20 ms reach
/// on a CPU. Returns 0 for `train.device: cuda` if there is no GPU or its nominal rate is unknown.
double matmul_rate(const Experiment& experiment) {
  if (experiment.train.device == "cuda") return peak_flops(at::kCUDA);
  const at::Tensor a = at::ones({768, 768}, compute_dtype(experiment.train));
  at::mm(a, a);
  double best = 1e9;
  for (int i = 0; i < 3; ++i) {
    const double start = seconds_now();
    at::mm(a, a);
    best = std::min(best, seconds_now() - start);
  }
  return 2.0 * 768 * 768 * 768 / best;
}

/// How many times this machine's rate all ranks reach together: on a CPU they share its cores.
double machines(const Experiment& experiment, int64_t ranks) {
  return experiment.train.device == "cuda" ? double(ranks) : 1;
}

void print_parameters(const ModelFigures& figures) {
  fmt::print(std::cout, "{:<14}{:>12}{:>12}\n", "parameters", "total", "active");
  const auto row = [](const std::string& name, int64_t total, double active) {
    return fmt::format("  {:<12}{:>12}{:>12}", name, format_count(double(total)),
                       format_count(active));
  };
  for (const ModelFigures::Part& part : figures.parts)
    fmt::print(std::cout, "{}\n", row(part.name, part.total, part.active));
  fmt::print(std::cout, "{}   ({} / {})\n", row("all", figures.total, figures.active),
             figures.total, int64_t(figures.active));
  const int64_t body = figures.total_without_embeddings;
  const double active = figures.active_without_embeddings;
  fmt::print(std::cout, "{}   ({} / {}; without embedding, head and MTP)\n",
             row("body", body, active), body, int64_t(active));
}

void print_flops(const ModelFigures& figures) {
  if (!figures.flops_unknown.empty())
    fmt::print(std::cout, "FLOPs/token    unknown: {}\n", figures.flops_unknown);
  else
    fmt::print(
        std::cout,
        "FLOPs/token    {} forward and backward ({} without the masked part of causal attention)\n",
        format_flops(figures.flops_per_token), format_flops(figures.flops_per_token_causal));
}

void print_memory(const MemoryEstimate& memory, bool recompute) {
  const std::string process =
      memory.process > 0 ? "process " + format_bytes(memory.process) + ", " : "";
  fmt::print(
      std::cout,
      "memory         {}weights {}, gradients {}, optimizer {}, activations {} ({}){}: {}{}\n",
      process, format_bytes(memory.weights), format_bytes(memory.gradients),
      format_bytes(memory.optimizer), format_bytes(memory.activations),
      recompute ? "recomputed" : "saved",
      memory.exchange > 0 ? ", exchange of matrices " + format_bytes(memory.exchange) : "",
      format_bytes(memory.total()),
      memory.offloaded > 0 ? ", and offloaded to the host " + format_bytes(memory.offloaded) : "");
}

/// Prints the cache size per token during generation. Each of DeepSeek-V3's 61 layers caches 576
/// values, whereas multi-head attention with 128 heads of 128 would cache 32,768.
void print_cache(const Model& model, const Experiment& experiment) {
  int64_t least = INT64_MAX, most = 0, all = 0, windows = 0, longest_window = 0;
  for (int64_t i = 0; i < experiment.model.layers; ++i) {  // MTP modules are not included
    Attention& attention = *model.attention()[size_t(i)];
    const int64_t values =
        checked::number(attention, "cache_values_per_token", &Attention::cache_values_per_token);
    if (const auto window = call(attention, "cache_window", &Attention::cache_window)) {
      ++windows;
      longest_window = std::max(longest_window, *window);
    }
    least = std::min(least, values);
    most = std::max(most, values);
    all += values;
  }
  const at::ScalarType type = compute_dtype(experiment.train);
  fmt::print(
      std::cout,
      "KV cache       {} values per token and layer, {} bytes per token in {} layer(s) of {}{}\n",
      least == most ? fmt::format("{}", most) : fmt::format("{} to {}", least, most),
      all * int64_t(c10::elementSize(type)), experiment.model.layers, experiment.train.precision,
      windows == 0 ? ""
                   : fmt::format("; {} layer(s) cache at most {} tokens", windows, longest_window));
}

/// Returns the largest micro-batch of at most `micro_batch` rows that divides `batch` and fits; 0 =
/// none. Assumes that a smaller micro-batch needs less memory.
int64_t largest_fitting(const MemoryEstimator& estimator, int64_t batch, int64_t micro_batch,
                        bool recompute, int64_t limit) {
  std::vector<int64_t> rows;
  for (int64_t count = 1; count <= micro_batch; ++count)
    if (batch % count == 0) rows.push_back(count);
  const auto end = std::partition_point(rows.begin(), rows.end(), [&](int64_t count) {
    return estimator.estimate(count, recompute).total() <= limit;
  });
  return end == rows.begin() ? 0 : *std::prev(end);
}

/// Prints whether `limit` bytes suffice. If not, prints a micro-batch and recomputation setting
/// that would fit.
void print_fit(const Experiment& experiment, const MemoryEstimator& estimator,
               const MemoryEstimate& memory, int64_t micro_batch, int64_t limit) {
  const std::string size = format_bytes(limit);
  if (memory.total() <= limit) {
    fmt::print(std::cout, "fits           yes, in {}\n", size);
    return;
  }
  for (const bool recompute : {false, true}) {
    const int64_t rows =
        largest_fitting(estimator, experiment.train.batch, micro_batch, recompute, limit);
    if (rows == 0) continue;
    fmt::print(std::cout,
               "fits           no, but would fit with train.micro_batch={}{}: {} of {}\n", rows,
               recompute ? " model.recompute=full" : "",
               format_bytes(estimator.estimate(rows, recompute).total()), size);
    return;
  }
  fmt::print(std::cout,
             "fits           no: even one row needs {} with model.recompute=full, more than {}\n",
             format_bytes(estimator.estimate(1, true).total()), size);
}

/// Prints the estimated memory, or why it is unknown.
void print_memory_and_fit(const Experiment& experiment, const MemoryEstimator& estimator,
                          std::optional<int64_t> limit, int64_t micro_batch) {
  const bool recompute = experiment.model.recompute == "full";
  try {
    const MemoryEstimate memory = estimator.estimate(micro_batch, recompute);
    print_memory(memory, recompute);
    if (limit) print_fit(experiment, estimator, memory, micro_batch, *limit);
  } catch (const Error& error) {
    fmt::print(std::cout, "memory         unknown: {}\n", error.what());
  }
}

}  // namespace

ModelFigures figures(const Experiment& experiment, Plugins& plugins) {
  const ModelFactory factory = factory_of(experiment, plugins);
  const Model model(experiment, vocab_of(experiment, plugins), factory, at::kMeta);
  return figures(model, experiment, factory);
}

void dry_run(const Experiment& experiment, Plugins& plugins, std::optional<int64_t> memory_limit,
             int64_t ranks) {
  preflight(experiment, plugins, PreflightScope::configuration, ranks);
  use_reference_ops(experiment.train.ops == "reference");
  const ModelFactory factory = factory_of(experiment, plugins);
  const Model model(experiment, vocab_of(experiment, plugins), factory, at::kMeta);
  const ModelFigures figures = dsv3::figures(model, experiment, factory);
  const OptimizerSet optimizers(experiment, plugins, model.store());
  MemoryEstimator estimator(experiment, plugins, factory, model.vocab(), ranks);
  estimator.use(experiment.strategy);
  const int64_t micro_batch = micro_batch_of(experiment.train, ranks);

  const int64_t steps = total_steps(experiment);
  const double tokens = double(steps * experiment.train.batch * experiment.train.sequence);
  const double rate = matmul_rate(experiment) * machines(experiment, ranks);
  fmt::print(std::cout, "{} ({})\n", experiment.name, experiment.file);
  print_parameters(figures);
  print_flops(figures);
  print_cache(model, experiment);
  if (ranks > 1)
    fmt::print(std::cout, "ranks          {} with strategy {}; of each rank:\n", ranks,
               experiment.strategy.plugin);
  print_memory_and_fit(experiment, estimator, memory_limit, micro_batch);
  if (ranks > 1)
    fmt::print(
        std::cout, "traffic        {} sent per step, in {} micro-batch(es)\n",
        format_bytes(double(estimator.bytes_moved(experiment.train.batch / (micro_batch * ranks)))),
        experiment.train.batch / (micro_batch * ranks));
  fmt::print(std::cout, "steps          {} of {} x {} tokens, {} tokens in total\n", steps,
             experiment.train.batch, experiment.train.sequence, format_count(tokens));
  if (rate > 0 && figures.flops_per_token > 0)
    fmt::print(std::cout, "time           about {} at {:.0f}% of the {} of {}/s\n",
               format_duration(tokens * figures.flops_per_token / (rate * kUtilisation)),
               100 * kUtilisation,
               experiment.train.device == "cuda" ? "GPU's peak" : "CPU's matmul rate",
               format_flops(rate));
  else
    fmt::print(
        std::cout, "time           unknown: {}\n",
        rate > 0 ? "FLOPs/token are unknown" : "no GPU was found, or its peak FLOP/s is unknown");
  fmt::print(std::cout, "{}", optimizers.plan());
}

}  // namespace dsv3
