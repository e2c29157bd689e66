// A run into a checkpoint and back: everything that decides the next bits.
#include <ATen/ATen.h>

#include <dsv3/sdk/log.h>

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

/// What a model means, without what an optimizer's state means.
std::map<std::string, std::string> of_model(std::map<std::string, std::string> conventions) {
  std::erase_if(conventions, [](const auto& one) { return one.first.starts_with("optimizer."); });
  return conventions;
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

void Trainer::load_model(const StoredModel& stored, bool with_optimizers) {
  const std::string other =
      with_optimizers
          ? convention_differences(stored.conventions, experiment_.conventions)
          : convention_differences(of_model(stored.conventions), of_model(experiment_.conventions));
  if (!other.empty())
    throw Error(
        stored.path.string() + " was made under other conventions:" + other +
            "\nSet these options and plugins as the checkpoint has them, or start without it",
        ExitCode::checkpoint);
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
    const bool own = std::filesystem::exists(stored.path / "manifest.json");
    throw Error(stored.path.string() + " is of another model: " + error.what() +
                    "\nGive `model` as the checkpoint has it (its settings are in " +
                    (stored.path / (own ? "manifest.json" : "config.json")).string() +
                    "), or start without it",
                error.code());
  }
}

void Trainer::restore(const StoredCheckpoint& checkpoint) {
  const StoredModel stored = stored_model_of(checkpoint);
  load_model(stored, /*with_optimizers=*/true);
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
  load_model(stored, /*with_optimizers=*/false);
  init_hash_ = hash_parameters();
  // Killed before its first checkpoint, the run must not go on from other values.
  save(std::nullopt);
}

}  // namespace dsv3
