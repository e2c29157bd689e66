// Builds the components of a run, saves the run to a checkpoint and restores it.
#include "train/training.h"

#include <set>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/version.h>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/log.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/support/sha256.h>

#include "call/checked.h"
#include "checkpoint/tensor_views.h"
#include "eval/validation.h"
#include "machine/machine.h"
#include "ranks/exchange.h"
#include "support/host.h"
#include "train/parameter_hashes.h"
#include "train/signals.h"

namespace dsv3 {
namespace {

/// What all ranks must have built alike before they exchange tensors.
Facts facts_of(const Model& model, const OptimizerSet& optimizers, const Tokenizer* tokenizer) {
  Facts facts;
  for (const Parameter& parameter : model.store().parameters())
    facts["parameter " + parameter.name] = c10::str(
        "shape ", parameter.tensor.sizes(), ", matrices ", parameter.spec.matrices, ", slices ",
        parameter.spec.shards, ", optimizer group ", optimizers.group_of(parameter));
  facts["vocabulary"] = std::to_string(model.vocab());
  facts["tokenizer"] = tokenizer ? tokenizer->digest() : "none";
  return facts;
}

/// Throws an error that lists the model settings that differ from the checkpoint's, or states
/// `cause` if they are identical.
[[noreturn]] void reject_model(const StoredModel& stored, const Experiment& experiment,
                               const std::string& cause) {
  const std::string settings = difference_lines(stored.resolved(), experiment.resolved,
                                                "in the checkpoint", "here", "model");
  throw Error(stored.path.string() + " is a checkpoint of another model:" +
                  (settings.empty() ? " " + cause : settings) +
                  "\nSet `model` as in the checkpoint, or start without the checkpoint",
              ExitCode::checkpoint);
}

/// Returns the name of a stored weight that the model does not have; empty = none.
std::string unused_weight(const StoredTensors& tensors, const Model& model) {
  constexpr std::string_view kModel = "model/";
  std::set<std::string> known;
  for (const Parameter& parameter : model.store().parameters()) known.insert(parameter.name);
  for (const std::string& name : tensors.names())
    if (name.starts_with(kModel) && !known.contains(name.substr(kModel.size())))
      return name.substr(kModel.size());
  return "";
}

Ranks on_device(Ranks ranks, at::Device device) {
  connect_device(ranks, device);
  return ranks;
}

}  // namespace

Training::Training(Experiment resolved, Plugins& search, RunFolder& run_folder, Ranks connected)
    : experiment(std::move(resolved)),
      plugins(search),
      folder(run_folder),
      device(device_of(experiment.train)),
      ranks(on_device(std::move(connected), device)),
      callbacks(experiment, plugins),
      checkpoints(folder.checkpoints(), experiment.checkpoint.keep_best),
      tracking(folder, ranks.is_first()),
      trace(experiment.train.trace_every, device,
            [this](int64_t step, record::Span span) { tracking.record(step, std::move(span)); }) {
  if (ranks.is_first()) metrics.emplace(folder.metrics());
  choose_determinism(experiment.train, device);
  at::set_num_threads(int(experiment.train.threads.value()));
  use_reference_ops(experiment.train.ops == "reference");
  steps = total_steps(experiment);
  micro_batch = micro_batch_of(experiment.train, ranks.size());
  accumulate = experiment.train.batch / (micro_batch * ranks.size());

  if (!experiment.tokenizer.plugin.empty())
    tokenizer = make<Tokenizer>(plugins, experiment.tokenizer, TokenizerContext{});
  ModelFactory factory = factory_of(experiment, plugins);
  factory.rank_group = rank_groups(ranks.world);
  model =
      std::make_unique<Model>(experiment, vocab_of(experiment, tokenizer.get()), factory, device);
  model_figures = figures(*model, experiment, factory_of(experiment, plugins));
  optimizers = std::make_unique<OptimizerSet>(experiment, plugins, model->store());
  schedule = make<Schedule>(plugins, experiment.schedule);
  require_equal(*ranks.control, facts_of(*model, *optimizers, tokenizer.get()));
  strategy = make<Strategy>(
      plugins, experiment.strategy,
      StrategyContext{ranks.world, device, compute_dtype(experiment.train), Metrics(sink)});
  ParameterHashes hashes;
  model->adopt(
      *strategy, uint64_t(experiment.train.seed),
      [this](const Parameter& parameter) { return optimizers->group_of(parameter); },
      [&hashes](const Parameter& parameter) { hashes.add(parameter); });
  initial_hashes = hashes.by_name(*ranks.control);
  state.init_hash = hash_of_all(initial_hashes);
  call(*strategy, "ready", &Strategy::ready, optimizers->specs());
  optimizers->bind(*strategy);
  loader = make_loader(experiment, plugins, *model, Split::train, micro_batch, tokenizer,
                       ranks.control->rank(), ranks.size());
  documents_hash = hash_of_documents(loader->state());
  require_equal(*ranks.control, {{"training documents", documents_hash}});
}

bool Training::is_logged(int64_t step) const {
  return step == steps || divides(experiment.train.log_every, step) ||
         divides(experiment.validation.every, step);
}

int Training::requested_stop() const {
  at::Tensor code = at::full({1}, int64_t(requested_exit_code()), at::kLong);
  ranks.control->all_reduce_max(code);
  return int(code.item<int64_t>());
}

void Training::save(std::optional<double> val_loss, bool replaces) {
  const Trace::Scope span(trace, Trace::Stage::eval, "checkpoint");
  finish_save(/*wait=*/true);
  CheckpointContent content = collect(val_loss);
  content.replaces = replaces;
  saved(checkpoints.save(content, *ranks.control));
}

void Training::save_in_background(std::optional<double> val_loss) {
  const Trace::Scope span(trace, Trace::Stage::eval, "checkpoint");
  finish_save(/*wait=*/true);
  CheckpointContent content = collect(val_loss);
  if (!is_worth_copying(content)) return saved(checkpoints.save(content, *ranks.control));
  copy_borrowed(content);
  pending_ = checkpoints.start(content, *ranks.control);
  log::debug(c10::str("saving step ", state.step, " in the background"));
}

void Training::finish_save(bool wait) {
  if (!pending_) return;
  const auto is_unwritten = [&] { return !CheckpointStore::is_written(*pending_); };
  if (!wait && is_true_on_any(*ranks.control, is_unwritten())) return;
  const std::shared_ptr<PendingCheckpoint> pending = std::exchange(pending_, nullptr);
  saved(checkpoints.finish(*pending, *ranks.control));
}

bool Training::is_worth_copying(const CheckpointContent& content) const {
  // Smaller files are written in less time than a step takes.
  constexpr uint64_t kLeastBytes = uint64_t{64} << 20;
  uint64_t bytes = 0, copied = 0;
  for (const auto& [name, view] : content.tensors) {
    bytes += view.size;
    if (content.borrowed.contains(name)) copied += view.size;
  }
  if (!is_true_on_any(*ranks.control, bytes >= kLeastBytes)) return false;
  // All ranks of a machine copy at the same time.
  const auto neighbours =
      std::ranges::count(gather_texts(*ranks.control, host_name()), host_name());
  return !is_true_on_any(*ranks.control, copied * uint64_t(neighbours) > available_bytes() / 2);
}

void Training::saved(const StoredCheckpoint& checkpoint) {
  log::info("saved checkpoint " + checkpoint.folder.string());
  const bool has_metrics = metrics && metrics->last_step() == checkpoint.step;
  tracking.checkpoint_saved(checkpoint, has_metrics ? metrics->last_time() : 0);
  callbacks.checkpoint_saved({checkpoint.step, checkpoint.folder.string()});
}

CheckpointContent Training::collect(std::optional<double> val_loss) {
  CheckpointContent content{.step = state.step, .tokens = state.tokens, .val_loss = val_loss};
  save_evaluation_weights(*strategy, *optimizers, state.updates, content);
  run_together(*ranks.control, [&] { add_state(content); });
  return content;
}

void Training::add_state(CheckpointContent& content) {
  if (ranks.is_first()) folder.require_exists();
  if (metrics) metrics->sync();
  Json libraries = Json::object();
  for (const LoadedLibrary& library : libraries_of(experiment, plugins))
    libraries[library.name] = library.sha256;
  save_parameters(*strategy, content);
  optimizers->save(content);
  for (const Buffer& buffer : model->store().buffers())
    if (ranks.is_first()) add_whole(content, "buffer/" + buffer.name, buffer.tensor);
  state.data = loader->state();
  state.callbacks = callbacks.state();
  state.stopped = callbacks.reason();
  content.state = state.to_json();
  content.state["config"] = experiment.resolved.yaml();
  content.state["conventions"] = experiment.conventions;
  content.state["tokenizer"] = tokenizer ? Json(tokenizer->digest()) : Json();
  content.state["plugins"] = libraries;
  content.state["strategy"] = experiment.strategy.plugin;
  content.state["world"] = ranks.size();
  content.state["machine"] = {{"cpu_capability", at::get_cpu_capability()},
                              {"libtorch", TORCH_VERSION}};
  require_finite(content.tensors, c10::str("cannot save step ", state.step), ExitCode::not_finite);
}

void Training::load_model(const StoredModel& stored) {
  if (tokenizer && !fits(*tokenizer, stored))
    throw Error(stored.path.string() +
                    " was trained with a different tokenizer than this experiment's '" +
                    experiment.tokenizer.plugin +
                    "': use the one it was trained with, or start without the checkpoint",
                ExitCode::checkpoint);
  if (const std::string extra = unused_weight(stored.tensors, *model); !extra.empty())
    reject_model(stored, experiment, "this model has no '" + extra + "'");
  Communicator& control = *ranks.control;
  run_together(control, [&] {
    stored.tensors.require_finite(stored.path.string(), ExitCode::checkpoint, control.rank(),
                                  control.size());
    try {
      load_parameters(*strategy, stored.tensors);
      for (const Buffer& buffer : model->store().buffers())
        stored.tensors.read("buffer/" + buffer.name, buffer.tensor);
    } catch (const Error& error) {
      reject_model(stored, experiment, error.what());
    }
  });
  call(*strategy, "loaded", &Strategy::loaded);
}

void Training::load_state(const StoredCheckpoint& checkpoint) {
  require_equal(*ranks.control, {{checkpoint.folder.string(), checkpoint.manifest.at("sha256")}});
  const StoredModel stored = stored_model_of(checkpoint);
  load_model(stored);
  // Check conventions after the tensors, because if the attention differs, a model mismatch is the
  // better explanation.
  require_conventions(stored, experiment, true);
  run_together(*ranks.control, [&] { optimizers->load(stored.tensors); });
  state = RunState::from_json(checkpoint.manifest);
  loader->load_state(state.data);
}

void Training::restore(const StoredCheckpoint& checkpoint) {
  load_state(checkpoint);
  if (state.step > steps)
    throw Error(c10::str(checkpoint.folder.string(), " is of step ", state.step,
                         ", but the run has only ", steps, " steps"),
                ExitCode::checkpoint);
  restored_val_loss = checkpoint.val_loss;
  callbacks.load_state(state.callbacks);
  if (ranks.is_first()) checkpoints.clean_up(state.step);
}

void Training::branch_from(const StoredCheckpoint& checkpoint) {
  load_state(checkpoint);
  if (callbacks.has_state_of(state.callbacks))
    callbacks.load_state(state.callbacks);
  else
    log::info("the callbacks differ from those of " + checkpoint.folder.string() +
              ", so they start without its state");
  state.stopped.clear();
  if (state.step >= steps)
    throw Error(
        c10::str("cannot branch at step ", state.step, ", because the run would end at step ",
                 steps, "; raise train.steps or train.tokens"),
        ExitCode::usage);
  save(checkpoint.val_loss);
}

void Training::start_from(const StoredModel& stored) {
  ParameterHashes hashes;
  for (const Parameter& parameter : model->store().parameters())
    if (const std::string name = "model/" + parameter.name; stored.tensors.contains(name)) {
      const at::Tensor whole = stored.tensors.whole(name);
      hashes.add(parameter.name, {static_cast<const char*>(whole.const_data_ptr()), whole.nbytes()},
                 parameter.spec.matrices * parameter.spec.shards);
    }
  const Json by_name = hashes.by_name(*ranks.control);
  require_equal(*ranks.control, {{"weights in " + stored.path.string(), hash_of_all(by_name)}});
  load_model(stored);
  require_conventions(stored, experiment, false);
  initial_hashes = by_name;
  state.init_hash = hash_of_all(initial_hashes);
  // If the run is killed before its first checkpoint, it must resume from these weights.
  save(std::nullopt);
}

}  // namespace dsv3
