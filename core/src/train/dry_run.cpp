// --dry-run: estimates an experiment's requirements on the meta device.
#include <fmt/format.h>

#include <dsv3/runtime/quantities.h>
#include <dsv3/runtime/trainer.h>

#include "call/call.h"
#include "machine/machine.h"
#include "support/host.h"
#include "train/progress.h"
#include "train/training.h"

namespace dsv3 {
namespace {

/// Memory in bytes that one rank needs during a step.
struct Memory {
  int64_t weights = 0;  ///< fp32 master and compute copy
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t activations = 0;  ///< for one micro-batch and one chunk of logits in the loss
  int64_t total() const { return weights + gradients + optimizer + activations; }
};

/// Assumed fraction of the measured or nominal matmul rate that a training step reaches.
constexpr double kUtilisation = 0.4;
/// Maximum size of a chunk of logits in linear_cross_entropy, in bytes.
constexpr int64_t kLogitsChunk = int64_t{128} << 20;

int64_t activation_bytes(const Experiment& experiment, const ModelFigures& figures,
                         int64_t micro_batch, bool recompute) {
  const int64_t element = compute_dtype(experiment.train) == at::kBFloat16 ? 2 : 4;
  const int64_t blocks = experiment.model.layers + experiment.mtp.depth;
  // With recomputation, each block saves only its input, and the activations of only one block
  // exist at a time.
  const int64_t values =
      recompute ? blocks * experiment.model.hidden + figures.saved_values_per_token / blocks
                : figures.saved_values_per_token;
  return micro_batch * experiment.train.sequence * values * element + kLogitsChunk;
}

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

void print_parameters(const ModelFigures& figures) {
  fmt::print("{:<14}{:>12}{:>12}\n", "parameters", "total", "active");
  const auto row = [](const std::string& name, int64_t total, double active) {
    return fmt::format("  {:<12}{:>12}{:>12}", name, format_count(double(total)),
                       format_count(active));
  };
  for (const ModelFigures::Part& part : figures.parts)
    fmt::print("{}\n", row(part.name, part.total, part.active));
  fmt::print("{}   ({} / {})\n", row("all", figures.total, figures.active), figures.total,
             int64_t(figures.active));
  const int64_t body = figures.total_without_embeddings;
  const double active = figures.active_without_embeddings;
  fmt::print("{}   ({} / {}; without embedding, head and MTP)\n", row("body", body, active), body,
             int64_t(active));
}

void print_memory(const Memory& memory, bool recompute) {
  fmt::print("memory         weights {}, gradients {}, optimizer {}, activations {} ({}): {}\n",
             format_bytes(memory.weights), format_bytes(memory.gradients),
             format_bytes(memory.optimizer), format_bytes(memory.activations),
             recompute ? "recomputed" : "saved", format_bytes(memory.total()));
}

/// Prints the cache size per token during generation. Each of DeepSeek-V3's 61 layers caches 576
/// values, whereas multi-head attention with 128 heads of 128 would cache 32,768.
void print_cache(const Model& model, const Experiment& experiment) {
  int64_t least = INT64_MAX, most = 0, all = 0;
  for (int64_t i = 0; i < experiment.model.layers; ++i) {  // MTP modules are not included
    const int64_t values = model.attention()[size_t(i)]->cache_values_per_token();
    least = std::min(least, values);
    most = std::max(most, values);
    all += values;
  }
  const at::ScalarType type = compute_dtype(experiment.train);
  fmt::print(
      "KV cache       {} values per token and layer, {} bytes per token in {} layer(s) of {}\n",
      least == most ? fmt::format("{}", most) : fmt::format("{} to {}", least, most),
      all * int64_t(c10::elementSize(type)), experiment.model.layers, experiment.train.precision);
}

/// Prints whether `limit` bytes suffice. If not, prints a micro-batch and recomputation setting
/// that would fit.
void print_fit(const Experiment& experiment, const ModelFigures& figures, Memory memory,
               int64_t micro_batch, int64_t limit) {
  const std::string size = format_bytes(limit);
  if (memory.total() <= limit) {
    fmt::print("fits           yes, in {}\n", size);
    return;
  }
  for (const bool recompute : {false, true})
    for (int64_t rows = micro_batch; rows >= 1; --rows) {
      if (experiment.train.batch % rows != 0) continue;
      memory.activations = activation_bytes(experiment, figures, rows, recompute);
      if (memory.total() > limit) continue;
      fmt::print("fits           no, but would fit with train.micro_batch={}{}: {} of {}\n", rows,
                 recompute ? " model.recompute=full" : "", format_bytes(memory.total()), size);
      return;
    }
  fmt::print("fits           no: weights, gradients and optimizer state alone need {} of {}\n",
             format_bytes(memory.total() - memory.activations), size);
}

/// A dry run reads the tokenizer only if `model.vocab` is auto.
int64_t vocab_for_dry_run(const Experiment& experiment, Plugins& plugins) {
  if (experiment.model.vocab) return *experiment.model.vocab;
  try {
    return vocab_of(experiment,
                    make<Tokenizer>(plugins, experiment.tokenizer, TokenizerContext{}).get());
  } catch (const Error& error) {
    throw Error("model.vocab is auto, which needs the tokenizer: " + std::string(error.what()) +
                    "; set model.vocab to a number for a dry run without it",
                error.code());
  }
}

}  // namespace

void dry_run(const Experiment& experiment, Plugins& plugins, std::optional<int64_t> memory_limit) {
  preflight(experiment, plugins, PreflightScope::configuration);
  const Model model(experiment, vocab_for_dry_run(experiment, plugins),
                    factory_of(experiment, plugins), at::kMeta);
  const ModelFigures figures = dsv3::figures(model, experiment);
  const OptimizerSet optimizers(experiment, plugins, model.store());
  const auto strategy = make<Strategy>(
      plugins, experiment.strategy,
      StrategyContext{local_communicator(), at::kMeta, compute_dtype(experiment.train)});
  const auto units =
      model.units([&](const Parameter& parameter) { return optimizers.group_of(parameter); });
  const Cost cost = call(*strategy, "estimate", &Strategy::estimate, units, 1);

  const int64_t micro_batch = experiment.train.micro_batch.value_or(experiment.train.batch);
  const bool recompute = experiment.model.recompute == "full";
  const Memory memory{cost.bytes_held, cost.bytes_peak - cost.bytes_held, optimizers.state_bytes(),
                      activation_bytes(experiment, figures, micro_batch, recompute)};

  const int64_t steps = total_steps(experiment);
  const double tokens = double(steps * experiment.train.batch * experiment.train.sequence);
  const double rate = matmul_rate(experiment);
  fmt::print("{} ({})\n", experiment.name, experiment.file);
  print_parameters(figures);
  fmt::print(
      "FLOPs/token    {} forward and backward ({} without the masked half of causal attention)\n",
      format_flops(figures.flops_per_token), format_flops(figures.flops_per_token_causal));
  print_cache(model, experiment);
  print_memory(memory, recompute);
  if (memory_limit) print_fit(experiment, figures, memory, micro_batch, *memory_limit);
  fmt::print("steps          {} of {} x {} tokens, {} tokens in total\n", steps,
             experiment.train.batch, experiment.train.sequence, format_count(tokens));
  if (rate > 0)
    fmt::print("time           about {} at {:.0f}% of the {} of {}/s\n",
               format_duration(tokens * figures.flops_per_token / (rate * kUtilisation)),
               100 * kUtilisation,
               experiment.train.device == "cuda" ? "GPU's peak" : "CPU's matmul rate",
               format_flops(rate));
  else
    fmt::print("time           unknown: no GPU was found, or its peak FLOP/s is unknown\n");
  fmt::print("{}", optimizers.plan());
}

}  // namespace dsv3
