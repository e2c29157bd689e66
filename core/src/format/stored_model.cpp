#include <cstring>
#include <unistd.h>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/machine.h>
#include <dsv3/runtime/run_folder.h>

#include "checkpoint/tensor_views.h"
#include "config/schemas.h"
#include "format/description.h"
#include "format/folder.h"
#include "machine/machine.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

/// Reads a checkpoint's tokenizer digests. An imported model may have several tokenizers, all of
/// which produce the same ids.
std::set<std::string> digests_of(const Json& tokenizer) {
  if (tokenizer.is_null()) return {};
  if (tokenizer.is_string()) return {tokenizer.get<std::string>()};
  return tokenizer.get<std::set<std::string>>();
}

[[noreturn]] void reject(const stdfs::path& path) {
  std::error_code error;
  std::string cause =
      " is neither a checkpoint (a folder with manifest.json), a run folder with a "
      "checkpoint, nor a Hugging Face folder (config.json)";
  if (!stdfs::exists(path, error))
    cause = error ? " cannot be opened: " + error.message()
                  : " does not exist; pass a run folder, a checkpoint or a Hugging Face folder";
  else if (::access(path.c_str(), R_OK) != 0 ||
           (stdfs::is_directory(path, error) && ::access(path.c_str(), X_OK) != 0))
    cause = " cannot be opened: " + std::string(std::strerror(errno));
  else if (!stdfs::is_directory(path, error))
    cause =
        " is a file, but a model is a folder: a checkpoint with manifest.json, such as "
        "runs/NAME/checkpoints/step-N, a run folder with a checkpoint, or a Hugging "
        "Face folder with config.json; dsv3 does not read PyTorch's files";
  throw Error(path.string() + cause, ExitCode::checkpoint);
}

/// Converts a convention's key to a path: "position.rope.layout" becomes model.position.layout.
/// Core keys are already paths.
std::string path_of_convention(const std::string& key) {
  const ConventionKey parts(key);
  for (const config::Slot& slot : config::slots())
    if (kind_name(slot.kind) == parts.kind) return std::string(slot.path) + "." + parts.option;
  return key;
}

Experiment experiment_of(const StoredModel& stored, const LoadRequest& request, Plugins& plugins) {
  std::vector<Setting> settings;
  if (!stored.experiment) {
    // If the folder was moved, its tokenizer is next to the weights.
    std::filesystem::path tokenizer = request.tokenizer;
    if (tokenizer.empty() && std::filesystem::exists(stored.path / "tokenizer.json"))
      tokenizer = stored.path / "tokenizer.json";
    if (!tokenizer.empty())
      settings.push_back({"data.tokenizer.file", std::filesystem::absolute(tokenizer).string(),
                          request.tokenizer.empty() ? stored.path.string() : "--tokenizer"});
  }
  Experiment experiment = stored.experiment ? *stored.experiment : stored.load(plugins, settings);
  // Override the device and precision, because the model may have been trained on a different
  // machine.
  set_machine(experiment, request.device, request.precision, "command line");
  if (!request.keep_threads) experiment.train.threads.reset();
  resolve_machine(experiment);
  return experiment;
}

/// Number of rows in the stored embedding. Resolving `model.vocab: auto` would need the tokenizer,
/// which may be missing.
int64_t vocab_of(const StoredModel& stored) {
  const std::string embedding = "model/embedding.weight";
  if (!stored.tensors.contains(embedding) || stored.tensors.shape(embedding).size() != 2)
    throw Error(stored.path.string() + " has no embedding of shape [vocabulary, hidden]",
                ExitCode::checkpoint);
  return stored.tensors.shape(embedding)[0];
}

/// Returns null if the model has no tokenizer. Rejects any tokenizer other than the one that the
/// model was trained with, because the output would be nonsense.
std::shared_ptr<const Tokenizer> tokenizer_of(const StoredModel& stored,
                                              const Experiment& experiment, Plugins& plugins) {
  if (experiment.tokenizer.plugin.empty()) return nullptr;
  std::shared_ptr<const Tokenizer> tokenizer =
      make<Tokenizer>(plugins, experiment.tokenizer, TokenizerContext{});
  if (!fits(*tokenizer, stored))
    throw Error(stored.path.string() +
                    " was trained with a different tokenizer than this experiment's '" +
                    experiment.tokenizer.plugin + "': pass the original one with --tokenizer",
                ExitCode::checkpoint);
  return tokenizer;
}

/// Replaces the training weights by the evaluation weights, where a checkpoint has them.
StoredModel for_evaluation(StoredModel stored) {
  constexpr std::string_view kEvaluation = "evaluation/";
  for (const std::string& name : stored.tensors.names())
    if (name.starts_with(kEvaluation))
      stored.tensors.replace("model/" + name.substr(kEvaluation.size()), name);
  return stored;
}

/// Casts all weights to `dtype`, except those that must stay in fp32.
void cast_weights(Model& model, at::ScalarType dtype) {
  if (dtype == at::kFloat) return;
  for (const Parameter& parameter : model.store().parameters())
    if (!parameter.spec.keep_fp32) {
      at::Tensor handle = parameter.tensor;
      handle.set_data(handle.detach().to(dtype));
    }
}

}  // namespace

bool fits(const Tokenizer& tokenizer, const StoredModel& stored) {
  return stored.tokenizers.empty() || stored.tokenizers.contains(tokenizer.digest());
}

Resolved StoredModel::resolved() const {
  return experiment ? experiment->resolved : read_resolved(source.text);
}

Experiment StoredModel::load(Plugins& plugins, const std::vector<Setting>& settings) const {
  ExperimentRequest request = source;
  request.settings.insert(request.settings.end(), settings.begin(), settings.end());
  try {
    return load_experiment(request, plugins);
  } catch (const Error& error) {
    throw Error(
        error.what() + (source.stored ? plugin_advice(path.parent_path().parent_path()) : ""),
        error.code());
  }
}

StoredModel stored_model_of(const StoredCheckpoint& checkpoint) {
  const Json& state = checkpoint.manifest.at("state");
  StoredModel stored;
  stored.path = checkpoint.folder;
  stored.source.file = checkpoint.folder / "manifest.json";
  stored.source.text = state.at("config").get<std::string>();
  stored.source.stored = true;
  for (const auto& [option, file] : stored_tokenizer(checkpoint.folder.parent_path().parent_path()))
    stored.source.settings.push_back({"data.tokenizer." + option, file.string(), "run folder"});
  stored.conventions = state.at("conventions").get<std::map<std::string, std::string>>();
  stored.tokenizers = digests_of(state.at("tokenizer"));
  stored.dtypes = state.value("dtypes", std::map<std::string, std::string>());
  stored.step = checkpoint.step;
  stored.tensors = StoredTensors(checkpoint);
  return stored;
}

StoredModel open_stored_model(const stdfs::path& path, Plugins& plugins,
                              const stdfs::path& tokenizer) {
  std::error_code ignored;
  if (stdfs::exists(path / "manifest.json", ignored))
    return for_evaluation(stored_model_of(verify_checkpoint(path)));
  if (stdfs::is_directory(path / "checkpoints", ignored)) {
    const CheckpointStore checkpoints(path / "checkpoints", 0);
    if (const auto newest = checkpoints.newest()) return for_evaluation(stored_model_of(*newest));
    checkpoints.fail_if_damaged();
  }
  if (stdfs::exists(path / "config.json", ignored)) return read_folder(path, plugins, tokenizer);
  reject(path);
}

std::string convention_differences(const std::map<std::string, std::string>& stored,
                                   const std::map<std::string, std::string>& current, bool advice) {
  std::string text;
  for (const auto& [key, value] : current) {
    const auto found = stored.find(key);
    const std::string before = found == stored.end() ? "absent" : found->second;
    if (before == value) continue;
    text += "\n  " + key + ": " + before + " in the checkpoint, " + value + " in this experiment";
    if (advice && found != stored.end()) text += "; set " + path_of_convention(key) + ": " + before;
  }
  for (const auto& [key, value] : stored)
    if (!current.contains(key))
      text += "\n  " + key + ": " + value + " in the checkpoint, absent in this experiment";
  return text;
}

void require_conventions(const StoredModel& stored, const Experiment& experiment, bool optimizers) {
  std::map<std::string, std::string> before = stored.conventions, now = experiment.conventions;
  const auto ignored = [&](const auto& entry) {
    return !optimizers && entry.first.starts_with(kind_name(Kind::optimizer) + std::string("."));
  };
  std::erase_if(before, ignored);
  std::erase_if(now, ignored);
  const std::string differences = convention_differences(before, now, true);
  if (differences.empty()) return;
  throw Error(settings_file(stored).string() + " has other conventions:" + differences +
                  "\nSet these options and plugins as in the checkpoint, or start without it",
              ExitCode::checkpoint);
}

std::filesystem::path settings_file(const StoredModel& stored) {
  std::error_code ignored;
  const stdfs::path manifest = stored.path / "manifest.json";
  return stdfs::exists(manifest, ignored) ? manifest : stored.path / "config.json";
}

void load_weights(Model& model, const StoredModel& stored) {
  const at::NoGradGuard no_grad;
  model.allocate();
  stored.tensors.require_finite(stored.path.string(), ExitCode::checkpoint);
  try {
    for (const Parameter& parameter : model.store().parameters())
      stored.tensors.read("model/" + parameter.name, parameter.tensor.detach());
    for (const Buffer& buffer : model.store().buffers())
      stored.tensors.read("buffer/" + buffer.name, buffer.tensor);
  } catch (const Error& error) {
    throw Error(stored.path.string() + ": " + error.what(), error.code());
  }
}

LoadedModel load_model(const LoadRequest& request, Plugins& plugins) {
  LoadedModel loaded;
  loaded.stored = open_stored_model(request.path, plugins, request.tokenizer);
  StoredModel& stored = loaded.stored;
  loaded.experiment = experiment_of(stored, request, plugins);
  const std::string differences =
      convention_differences(stored.conventions, loaded.experiment.conventions);
  if (!differences.empty())
    throw Error(
        stored.path.string() +
            " uses conventions that this dsv3 or its plugins no longer support:" + differences,
        ExitCode::checkpoint);
  if (request.with_tokenizer) loaded.tokenizer = tokenizer_of(stored, loaded.experiment, plugins);
  loaded.device = device_of(loaded.experiment.train, {"--device", "pass --device cpu"});
  choose_determinism(loaded.experiment.train, loaded.device);
  loaded.model = std::make_unique<Model>(loaded.experiment, vocab_of(stored),
                                         factory_of(loaded.experiment, plugins), loaded.device);
  load_weights(*loaded.model, stored);
  stored.tensors = {};
  cast_weights(*loaded.model, compute_dtype(loaded.experiment.train));
  return loaded;
}

}  // namespace dsv3
