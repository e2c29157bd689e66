#include "train/auto_strategy.h"

#include <dsv3/runtime/machine.h>
#include <dsv3/runtime/quantities.h>
#include <dsv3/sdk/log.h>

#include "eval/validation.h"
#include "machine/machine.h"
#include "ranks/exchange.h"
#include "support/host.h"
#include "train/memory.h"
#include "train/training.h"

namespace dsv3 {
namespace {

using Options = std::vector<std::pair<std::string, OptionValue>>;

/// A strategy and its options other than defaults.
struct Candidate {
  std::string plugin;
  Options options = {};

  std::string text() const {
    std::string text = plugin;
    for (const auto& [key, value] : options)
      text += " " + key + ": " + ResolvedValue{key, value, {}}.yaml();
    return text;
  }
};

/// In the order of speed: each needs less memory than the one before it, and sends more.
std::vector<Candidate> candidates(const Experiment& experiment, int64_t ranks) {
  std::vector<Candidate> all;
  if (ranks == 1) {
    all.push_back({"single"});
  } else {
    all.push_back({"ddp"});
    for (const int64_t stage : {1, 2, 3}) all.push_back({"zero", {{"stage", stage}}});
  }
  if (experiment.train.device == "cuda") {
    all.push_back({"zero", {{"stage", int64_t{2}}, {"offload", std::string("optimizer")}}});
    all.push_back({"zero", {{"stage", int64_t{3}}, {"offload", std::string("parameters")}}});
  }
  return all;
}

/// Memory that a rank may use: that of its GPU, or its share of what is available on this machine.
int64_t memory_limit(const Experiment& experiment, int64_t local_ranks) {
  constexpr double kUsable = 0.9;  // of a GPU: the rest is for the driver and fragmentation
  if (experiment.train.device == "cuda")
    return int64_t(kUsable * double(gpu_of(device_of(experiment.train))->memory_bytes));
  return int64_t(available_bytes()) / local_ranks;
}

ComponentSpec spec_of(const Candidate& candidate, const ComponentSpec& automatic) {
  ComponentSpec spec = automatic;
  spec.plugin = candidate.plugin;
  spec.options = {candidate.options.begin(), candidate.options.end()};
  return spec;
}

/// Returns the index of the first candidate that fits.
size_t first_that_fits(const Experiment& experiment, Plugins& plugins,
                       const std::vector<Candidate>& all, int64_t ranks, int64_t local_ranks) {
  const int64_t limit = memory_limit(experiment, local_ranks);
  const int64_t micro_batch = micro_batch_of(experiment.train, ranks);
  const ModelFactory factory = factory_of(experiment, plugins);
  MemoryEstimator estimator(experiment, plugins, factory, vocab_of(experiment, plugins), ranks);
  std::string table;
  size_t chosen = all.size();
  for (size_t i = 0; i < all.size(); ++i) {
    estimator.use(spec_of(all[i], experiment.strategy));
    const MemoryEstimate memory =
        estimator.estimate(micro_batch, experiment.model.recompute == "full");
    if (memory.total() <= limit) chosen = std::min(chosen, i);
    table += "\n  " + all[i].text() + ": " + format_bytes(double(memory.total())) +
             (chosen == i ? " (chosen)" : "");
  }
  log::info("strategy auto, " + format_bytes(double(limit)) + " available to each rank:" + table);
  if (chosen < all.size()) return chosen;
  log::warning("no strategy fits; trying " + all.back().text() +
               ". Reduce train.micro_batch, set model.recompute=full, or use more ranks");
  return all.size() - 1;
}

size_t choose(const Experiment& experiment, Plugins& plugins, const std::vector<Candidate>& all,
              int64_t ranks, int64_t local_ranks) {
  if (all.size() == 1) return 0;
  try {
    return first_that_fits(experiment, plugins, all, ranks, local_ranks);
  } catch (const Error& error) {
    if (error.code() == ExitCode::usage) throw;
    log::warning("strategy auto: using " + all.front().text() +
                 ", because the memory cannot be estimated: " + error.what());
    return 0;
  }
}

void apply(Experiment& experiment, Plugins& plugins, const Candidate& candidate) {
  experiment.strategy = spec_of(candidate, experiment.strategy);
  plugins.find(experiment.strategy);  // loads its library, so that all ranks have the same ones
  const Origin origin{"strategy: auto"};
  experiment.resolved.set("strategy.plugin", candidate.plugin, origin);
  for (const auto& [key, value] : candidate.options)
    experiment.resolved.set("strategy." + key, value, origin);
}

}  // namespace

void choose_strategy(Experiment& experiment, Plugins& plugins, int64_t ranks, int64_t local_ranks) {
  if (experiment.strategy.plugin != kAutoStrategy) return;
  const std::vector<Candidate> all = candidates(experiment, ranks);
  apply(experiment, plugins, all[choose(experiment, plugins, all, ranks, local_ranks)]);
}

void choose_strategy(Experiment& experiment, Plugins& plugins, const Ranks& ranks,
                     int64_t local_ranks) {
  if (experiment.strategy.plugin != kAutoStrategy) return;
  Experiment resolved = experiment;  // a resumed run keeps its device, which is not known yet
  resolve_machine(resolved, local_ranks);
  const std::vector<Candidate> all = candidates(resolved, ranks.size());
  size_t chosen = 0;
  run_together(*ranks.control, [&] {
    if (ranks.is_first()) chosen = choose(resolved, plugins, all, ranks.size(), local_ranks);
  });
  apply(experiment, plugins,
        all[std::stoul(broadcast_text(*ranks.control, std::to_string(chosen)))]);
}

}  // namespace dsv3
