// --dry-run: what an experiment costs, computed on the meta device.
#include <fmt/format.h>
#include <iostream>
#include <limits>

#include <ATen/ATen.h>

#include <dsv3/runtime/model.h>
#include <dsv3/runtime/optimizer_set.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/strategy.h>
#include <dsv3/sdk/tokenizer.h>

#include "train/clock.h"
#include "train/machine.h"
#include "train/progress.h"

namespace dsv3 {
namespace {

/// Bytes of one rank in a step.
struct Memory {
  int64_t held = 0;  ///< weights: fp32 master and compute copy
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t activations = 0;  ///< of one micro-batch, with one chunk of logits
  int64_t total() const { return held + gradients + optimizer + activations; }
};

/// Share of the measured or nominal matmul rate that a training step reaches, for the estimate of
/// time.
constexpr double kUtilisation = 0.4;
/// Most bytes of logits that linear_cross_entropy holds at once.
constexpr int64_t kLogitsChunk = int64_t{128} << 20;

int64_t activation_bytes(const Experiment& experiment, const ModelFigures& figures,
                         int64_t micro_batch, bool recompute) {
  const int64_t element = compute_dtype(experiment.train) == at::kBFloat16 ? 2 : 4;
  const int64_t blocks = experiment.model.layers + experiment.mtp.depth;
  // With recomputation a block keeps its input, and one block's values are there at a time.
  const int64_t values =
      recompute ? blocks * experiment.model.hidden + figures.saved_values_per_token / blocks
                : figures.saved_values_per_token;
  return micro_batch * experiment.train.sequence * values * element + kLogitsChunk;
}

/// FLOP/s of this machine: a known GPU's, or measured by a matmul of about 20 ms.
double matmul_rate(const Experiment& experiment) {
  const at::Device device = device_of(experiment.train);
  if (const double peak = peak_flops(device); peak > 0) return peak;
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
  std::cout << fmt::format("{:<14}{:>12}{:>12}\n", "parameters", "total", "active");
  for (const ModelFigures::Part& part : figures.parts)
    std::cout << fmt::format("  {:<12}{:>12}{:>12}\n", part.name,
                             format_count(static_cast<double>(part.total)),
                             format_count(part.active));
  std::cout << fmt::format(
      "  {:<12}{:>12}{:>12}   ({} / {})\n", "all", format_count(static_cast<double>(figures.total)),
      format_count(figures.active), figures.total, static_cast<int64_t>(figures.active));
  std::cout << fmt::format(
      "  {:<12}{:>12}{:>12}   ({} / {}; without embedding, head and MTP)\n", "body",
      format_count(static_cast<double>(figures.total_without_embeddings)),
      format_count(figures.active_without_embeddings), figures.total_without_embeddings,
      static_cast<int64_t>(figures.active_without_embeddings));
}

void print_memory(const Memory& memory, bool recompute) {
  std::cout << fmt::format(
      "memory         weights {}, gradients {}, optimizer {}, activations {} ({}): {}\n",
      format_bytes(static_cast<double>(memory.held)),
      format_bytes(static_cast<double>(memory.gradients)),
      format_bytes(static_cast<double>(memory.optimizer)),
      format_bytes(static_cast<double>(memory.activations)), recompute ? "recomputed" : "kept",
      format_bytes(static_cast<double>(memory.total())));
}

/// What generation keeps of every token: 61 layers of DeepSeek-V3 keep 576 values each, where
/// multi-head attention of 128 heads of 128 would keep 32,768.
void print_cache(const Model& model, const Experiment& experiment) {
  int64_t least = std::numeric_limits<int64_t>::max(), most = 0, all = 0;
  for (int64_t i = 0; i < experiment.model.layers; ++i) {  // MTP modules take no part
    const int64_t values = model.attention()[size_t(i)]->cache_values_per_token();
    least = std::min(least, values);
    most = std::max(most, values);
    all += values;
  }
  const at::ScalarType type = compute_dtype(experiment.train);
  std::cout << fmt::format(
      "KV cache       {} values a token a layer, {} bytes a token in {} layer(s) of {}\n",
      least == most ? fmt::format("{}", most) : fmt::format("{} to {}", least, most),
      all * int64_t(c10::elementSize(type)), experiment.model.layers, experiment.train.precision);
}

/// Says whether `limit` bytes are enough, and if not, which micro-batch and recomputation would be.
void print_fit(const Experiment& experiment, const ModelFigures& figures, Memory memory,
               int64_t micro_batch, int64_t limit) {
  const std::string size = format_bytes(static_cast<double>(limit));
  if (memory.total() <= limit) {
    std::cout << "fits           yes, in " << size << "\n";
    return;
  }
  for (const bool recompute : {false, true})
    for (int64_t rows = micro_batch; rows >= 1; --rows) {
      if (experiment.train.batch % rows != 0) continue;
      memory.activations = activation_bytes(experiment, figures, rows, recompute);
      if (memory.total() > limit) continue;
      std::cout << "fits           not as it is, but with train.micro_batch=" << rows
                << (recompute ? " model.recompute=full" : "") << ": "
                << format_bytes(static_cast<double>(memory.total())) << " of " << size << "\n";
      return;
    }
  std::cout << "fits           no: weights, gradients and optimizer state alone need "
            << format_bytes(static_cast<double>(memory.total() - memory.activations)) << " of "
            << size << "\n";
}

}  // namespace

void dry_run(const Experiment& experiment, Plugins& plugins, std::optional<int64_t> memory_limit) {
  int64_t vocab = experiment.model.vocab;
  if (vocab == 0) {
    if (experiment.tokenizer.plugin.empty())
      throw Error("model.vocab is auto, but data names no tokenizer: give model.vocab a number",
                  ExitCode::usage);
    vocab = make<Tokenizer>(plugins, experiment.tokenizer, TokenizerContext{})->vocab_size();
  }
  const Model model(experiment, vocab, plugins, at::kMeta);
  const ModelFigures figures = dsv3::figures(model, experiment);
  const OptimizerSet optimizers(experiment, plugins, model.store());
  const auto strategy = make<Strategy>(
      plugins, experiment.strategy,
      StrategyContext{local_communicator(), at::kMeta, compute_dtype(experiment.train)});
  const auto units =
      model.units([&](const Parameter& parameter) { return optimizers.group_of(parameter); });
  const Cost cost = strategy->estimate(units, 1);

  const int64_t micro_batch =
      experiment.train.micro_batch > 0 ? experiment.train.micro_batch : experiment.train.batch;
  const bool recompute = experiment.model.recompute == "full";
  Memory memory;
  memory.held = cost.bytes_held;
  memory.gradients = cost.bytes_peak - cost.bytes_held;
  memory.optimizer = optimizers.state_bytes();
  memory.activations = activation_bytes(experiment, figures, micro_batch, recompute);

  const int64_t steps = total_steps(experiment);
  const double tokens =
      static_cast<double>(steps * experiment.train.batch * experiment.train.sequence);
  const double rate = matmul_rate(experiment);
  std::cout << experiment.name << " (" << experiment.file << ")\n";
  print_parameters(figures);
  std::cout << fmt::format(
      "FLOPs a token  {} forward and backward ({} with causal attention counted half)\n",
      format_count(figures.flops_per_token), format_count(figures.flops_per_token_causal));
  print_cache(model, experiment);
  print_memory(memory, recompute);
  if (memory_limit) print_fit(experiment, figures, memory, micro_batch, *memory_limit);
  std::cout << fmt::format("steps          {} of {} x {} tokens, {} tokens in all\n", steps,
                           experiment.train.batch, experiment.train.sequence, format_count(tokens));
  std::cout << fmt::format(
      "time           about {} at {:.0f} % of {}FLOP/s\n",
      format_duration(tokens * figures.flops_per_token / (rate * kUtilisation)), 100 * kUtilisation,
      format_count(rate));
  std::cout << optimizers.plan();
}

}  // namespace dsv3
