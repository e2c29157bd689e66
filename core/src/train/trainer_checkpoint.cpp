// Saves a run to a checkpoint and restores it, so that the next step is bit-identical.
#include <set>

#include <dsv3/runtime/compare.h>
#include <dsv3/sdk/log.h>

#include "call/checked.h"
#include "checkpoint/tensor_views.h"
#include "train/trainer.h"

namespace dsv3 {
namespace {

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
std::string unused_weight(const TensorViews& tensors, Strategy& strategy) {
  constexpr std::string_view kModel = "model/";
  std::set<std::string> known;
  for (const OwnedTensor& owned : checked::owned(strategy)) known.insert(owned.range.name);
  for (const auto& [key, view] : tensors) {
    if (!key.starts_with(kModel)) continue;
    const std::string name =
        key.substr(kModel.size(), key.find('/', kModel.size()) - kModel.size());
    if (!known.contains(name)) return name;
  }
  return "";
}

}  // namespace

void Trainer::save(std::optional<double> val_loss) {
  metrics_.sync();
  CheckpointContent content{.step = step_, .tokens = tokens_, .val_loss = val_loss};
  Json plugins = Json::object();
  for (const LoadedLibrary& library : libraries_of(experiment_, plugins_))
    plugins[library.name] = library.sha256;
  std::vector<at::Tensor> alive = save_parameters(*strategy_, content.tensors);
  const std::vector<at::Tensor> states = optimizers_->save(content.tensors);
  for (const Buffer& buffer : model_->store().buffers())
    alive.push_back(add_view(content.tensors, "buffer/" + buffer.name, buffer.tensor));
  content.state = {{"data", loader_->state()},
                   {"updates", updates_},
                   {"config", experiment_.resolved.yaml()},
                   {"conventions", experiment_.conventions},
                   {"tokenizer", tokenizer_ ? Json(tokenizer_->digest()) : Json()},
                   {"plugins", plugins},
                   {"strategy", experiment_.strategy.plugin},
                   {"world", world_->size()},
                   {"init_hash", init_hash_},
                   {"data_hash", data_hash_}};
  log::info("saved checkpoint " + checkpoints_.save(content).folder.string());
}

void Trainer::load_model(const StoredModel& stored) {
  if (tokenizer_ && !fits(*tokenizer_, stored))
    throw Error(stored.path.string() +
                    " was trained with a different tokenizer than this experiment's '" +
                    experiment_.tokenizer.plugin +
                    "': use the one it was trained with, or start without the checkpoint",
                ExitCode::checkpoint);
  if (const std::string extra = unused_weight(stored.tensors, *strategy_); !extra.empty())
    reject_model(stored, experiment_, "this model has no '" + extra + "'");
  try {
    load_parameters(*strategy_, stored.tensors);
    for (const Buffer& buffer : model_->store().buffers())
      copy_view(stored.tensors, "buffer/" + buffer.name, buffer.tensor);
  } catch (const Error& error) {
    reject_model(stored, experiment_, error.what());
  }
}

void Trainer::restore(const StoredCheckpoint& checkpoint) {
  const StoredModel stored = stored_model_of(checkpoint);
  load_model(stored);
  // Check conventions after the tensors, because if the attention differs, a model mismatch is the
  // better explanation.
  require_conventions(stored, experiment_, true);
  optimizers_->load(stored.tensors);
  const Json& state = checkpoint.manifest.at("state");
  step_ = checkpoint.step;
  tokens_ = checkpoint.tokens;
  updates_ = state.at("updates").get<int64_t>();
  init_hash_ = state.at("init_hash").get<std::string>();
  data_hash_ = state.at("data_hash").get<std::string>();
  loader_->load_state(state.at("data"));
  logged_tokens_ = tokens_;
  checkpoints_.clean_up(step_);
}

void Trainer::start_from(const StoredModel& stored) {
  load_model(stored);
  require_conventions(stored, experiment_, false);
  init_hash_ = hash_parameters();
  // If the run is killed before its first checkpoint, it must resume from these weights.
  save(std::nullopt);
}

}  // namespace dsv3
