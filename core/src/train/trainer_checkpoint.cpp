// A run into a checkpoint and back: everything that decides the next bits.
#include <ATen/ATen.h>

#include <dsv3/sdk/log.h>
#include <dsv3/support/safetensors.h>

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

constexpr const char* kThere = "in the checkpoint";

/// Lists what differs between the conventions of a checkpoint and of the experiment; empty =
/// nothing.
std::string differences(const std::map<std::string, std::string>& saved,
                        const std::map<std::string, std::string>& wanted) {
  std::string text;
  const auto add = [&](const std::string& key, const std::string& there, const std::string& here) {
    text += "\n  " + key + ": " + there + " " + kThere + ", " + here + " here";
  };
  for (const auto& [key, value] : saved)
    if (!wanted.contains(key)) add(key, value, "absent");
  for (const auto& [key, value] : wanted)
    if (!saved.contains(key))
      add(key, "absent", value);
    else if (saved.at(key) != value)
      add(key, saved.at(key), value);
  return text;
}

/// `why` is said only when the settings of the two models do not say it.
[[noreturn]] void refuse_model(const StoredCheckpoint& checkpoint, const Experiment& experiment,
                               const std::string& why) {
  const std::string settings =
      difference_lines(checkpoint.manifest.at("state").at("config").get<std::string>(),
                       experiment.resolved, kThere, "here", "model");
  throw Error(checkpoint.folder.string() +
                  " is of another model:" + (settings.empty() ? " " + why : settings) +
                  "\nGive `model` as the checkpoint has it, or start without it",
              ExitCode::checkpoint);
}

safetensors::File open_tensors(const StoredCheckpoint& checkpoint) {
  return safetensors::File(checkpoint.folder / "rank-00000.safetensors");
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

void Trainer::load_model(const StoredCheckpoint& checkpoint, const safetensors::File& file) {
  const Json& state = checkpoint.manifest.at("state");
  if (tokenizer_ && !state.at("tokenizer").is_null() &&
      state.at("tokenizer") != tokenizer_->digest())
    throw Error(
        checkpoint.folder.string() + " was trained with another tokenizer than " +
            experiment_.tokenizer.plugin +
            " gives now: name the tokenizer it was trained with, or start without the checkpoint",
        ExitCode::checkpoint);
  try {
    load_parameters(*strategy_, file.tensors());
    for (const Buffer& buffer : model_->store().buffers())
      copy_view(file.tensors(), "buffer/" + buffer.name, buffer.tensor);
  } catch (const Error& error) {
    refuse_model(checkpoint, experiment_, error.what());
  }
  // After the tensors: another attention lacks a convention, too, but that is not what is wrong.
  const std::string other = differences(state.at("conventions"), experiment_.conventions);
  if (!other.empty())
    throw Error(
        checkpoint.folder.string() + " was made under other conventions:" + other +
            "\nSet these options and plugins as the checkpoint has them, or start without it",
        ExitCode::checkpoint);
}

void Trainer::restore(const StoredCheckpoint& checkpoint) {
  const safetensors::File file = open_tensors(checkpoint);
  load_model(checkpoint, file);
  optimizers_->load(file.tensors());
  const Json& state = checkpoint.manifest.at("state");
  step_ = checkpoint.step;
  tokens_ = checkpoint.tokens;
  updates_ = state.at("updates").get<int64_t>();
  init_hash_ = state.at("init_hash").get<std::string>();
  data_hash_ = state.at("data_hash").get<std::string>();
  loader_->load_state(state.at("data"));
  since_tokens_ = tokens_;
}

void Trainer::start_from(const StoredCheckpoint& checkpoint) {
  load_model(checkpoint, open_tensors(checkpoint));
  init_hash_ = hash_parameters();
  // Killed before its first checkpoint, the run must not go on from other values.
  save(std::nullopt);
}

}  // namespace dsv3
