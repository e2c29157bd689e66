// A run into a checkpoint and back: everything that decides the next bits.
#include <ATen/ATen.h>

#include <dsv3/sdk/log.h>

#include "train/differences.h"
#include "train/libraries.h"
#include "train/tensor_views.h"
#include "train/trainer.h"

namespace dsv3 {
namespace {

Json digests_of(const std::vector<LoadedLibrary>& libraries) {
  Json digests = Json::object();
  for (const LoadedLibrary& library : libraries) digests[library.name] = library.sha256;
  return digests;
}

/// `why` is said only when the settings of the two models do not say it.
[[noreturn]] void refuse_model(const StoredModel& stored, const Experiment& experiment,
                               const std::string& why) {
  const std::string settings =
      difference_lines(stored.config, experiment.resolved, "in the checkpoint", "here", "model");
  throw Error(stored.path.string() +
                  " is of another model:" + (settings.empty() ? " " + why : settings) +
                  "\nGive `model` as the checkpoint has it, or start without it",
              ExitCode::checkpoint);
}

}  // namespace

void Trainer::save(std::optional<double> val_loss) {
  metrics_.sync();
  CheckpointContent content;
  content.step = step_;
  content.tokens = tokens_;
  content.val_loss = val_loss;
  std::vector<at::Tensor> alive = save_parameters(*strategy_, content.tensors);
  const std::vector<at::Tensor> states = optimizers_->save(content.tensors);
  for (const Buffer& buffer : model_->store().buffers())
    alive.push_back(add_view(content.tensors, "buffer/" + buffer.name, buffer.tensor));
  content.state = {{"data", loader_->state()},
                   {"updates", updates_},
                   {"config", experiment_.resolved},
                   {"conventions", experiment_.conventions},
                   {"tokenizer", tokenizer_ ? Json(tokenizer_->digest()) : Json()},
                   {"plugins", digests_of(libraries_of(experiment_, plugins_))},
                   {"strategy", experiment_.strategy.plugin},
                   {"world", world_->size()},
                   {"init_hash", init_hash_},
                   {"data_hash", data_hash_}};
  const StoredCheckpoint stored = checkpoints_.save(content);
  log::info("saved " + stored.folder.string());
}

void Trainer::load_model(const StoredModel& stored) {
  if (tokenizer_ && !stored.tokenizer_digest.empty() &&
      stored.tokenizer_digest != tokenizer_->digest())
    throw Error(
        stored.path.string() + " was trained with another tokenizer than " +
            experiment_.tokenizer.plugin +
            " gives now: name the tokenizer it was trained with, or start without the checkpoint",
        ExitCode::checkpoint);
  try {
    load_parameters(*strategy_, stored.tensors);
    for (const Buffer& buffer : model_->store().buffers())
      copy_view(stored.tensors, "buffer/" + buffer.name, buffer.tensor);
  } catch (const Error& error) {
    refuse_model(stored, experiment_, error.what());
  }
}

void Trainer::restore(const StoredCheckpoint& checkpoint) {
  const StoredModel stored = stored_model_of(checkpoint);
  load_model(stored);
  // After the tensors: another attention lacks a convention, too, but that is not what is wrong.
  require_conventions(stored, experiment_, true);
  optimizers_->load(stored.tensors);
  const Json& state = checkpoint.manifest.at("state");
  step_ = checkpoint.step;
  tokens_ = checkpoint.tokens;
  updates_ = state.at("updates").get<int64_t>();
  init_hash_ = state.at("init_hash").get<std::string>();
  data_hash_ = state.at("data_hash").get<std::string>();
  loader_->load_state(state.at("data"));
  since_tokens_ = tokens_;
}

void Trainer::start_from(const StoredModel& stored) {
  load_model(stored);
  require_conventions(stored, experiment_, false);
  init_hash_ = hash_parameters();
  // Killed before its first checkpoint, the run must not go on from other values.
  save(std::nullopt);
}

}  // namespace dsv3
