// A stored model as one that computes: plain tensors, no strategy, no optimizer.
#include <ATen/ATen.h>

#include <dsv3/runtime/stored_model.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/error.h>

#include "train/machine.h"
#include "train/tensor_views.h"

namespace dsv3 {
namespace {

Experiment experiment_of(const StoredModel& stored, const LoadRequest& request, Plugins& plugins) {
  ExperimentRequest wanted;
  wanted.file = stored.path / "config.yaml";
  wanted.text = stored.config;
  // The machine that trained it need not be this one.
  const std::pair<const char*, const std::string&> machine[] = {
      {"device", request.device}, {"precision", request.precision}, {"threads", request.threads}};
  for (const auto& [key, value] : machine)
    if (!value.empty()) wanted.forced.push_back(std::string("train.") + key + "=" + value);
  wanted.forced_label = "this machine";
  // A folder that was moved keeps its tokenizer beside the weights.
  std::filesystem::path tokenizer = request.tokenizer;
  if (tokenizer.empty() && std::filesystem::exists(stored.path / "tokenizer.json"))
    tokenizer = stored.path / "tokenizer.json";
  if (!tokenizer.empty())
    wanted.forced.push_back("data.tokenizer.file=" + std::filesystem::absolute(tokenizer).string());
  return resolve_machine(wanted, plugins);
}

/// Rows of the embedding as they were stored: `model.vocab: auto` depends on the tokenizer, which
/// may be gone.
int64_t vocab_of(const StoredModel& stored) {
  const auto found = stored.tensors.find("model/embedding.weight");
  if (found == stored.tensors.end() || found->second.shape.size() != 2)
    throw Error(stored.path.string() + " has no embedding of shape [vocabulary, width]",
                ExitCode::checkpoint);
  return found->second.shape[0];
}

/// Null when the model names none. Another tokenizer than the weights were trained with is refused:
/// it would compute nonsense.
std::shared_ptr<const Tokenizer> tokenizer_of(const StoredModel& stored,
                                              const Experiment& experiment, Plugins& plugins) {
  if (experiment.tokenizer.plugin.empty()) return nullptr;
  std::shared_ptr<const Tokenizer> tokenizer =
      make<Tokenizer>(plugins, experiment.tokenizer, TokenizerContext{});
  if (!fits(*tokenizer, stored))
    throw Error(stored.path.string() + " was trained with another tokenizer than " +
                    experiment.tokenizer.plugin +
                    " gives now: name the file it was trained with by --tokenizer",
                ExitCode::checkpoint);
  return tokenizer;
}

/// Weights that may be computed with in bf16, in bf16.
void cast_weights(Model& model, at::ScalarType dtype) {
  if (dtype == at::kFloat) return;
  for (const Parameter& parameter : model.store().parameters())
    if (!parameter.spec.keep_fp32) {
      at::Tensor handle = parameter.tensor;
      handle.set_data(handle.detach().to(dtype));
    }
}

}  // namespace

void load_weights(Model& model, const StoredModel& stored) {
  const at::NoGradGuard no_grad;
  try {
    for (const Parameter& parameter : model.store().parameters())
      copy_view(stored.tensors, "model/" + parameter.name, parameter.tensor.detach());
    for (const Buffer& buffer : model.store().buffers())
      copy_view(stored.tensors, "buffer/" + buffer.name, buffer.tensor);
  } catch (const Error& error) {
    throw Error(stored.path.string() + ": " + error.what(), error.code());
  }
}

LoadedModel load_model(const LoadRequest& request, Plugins& plugins) {
  LoadedModel loaded;
  loaded.stored = open_stored_model(request.path, plugins, request.tokenizer);
  StoredModel& stored = loaded.stored;
  loaded.experiment = experiment_of(stored, request, plugins);
  const std::string other =
      convention_differences(stored.conventions, loaded.experiment.conventions);
  if (!other.empty())
    throw Error(
        stored.path.string() +
            " was made under conventions that this dsv3 or its plugins no longer have:" + other,
        ExitCode::checkpoint);
  if (request.with_tokenizer) loaded.tokenizer = tokenizer_of(stored, loaded.experiment, plugins);
  loaded.device = device_of(loaded.experiment.train);
  loaded.model =
      std::make_unique<Model>(loaded.experiment, vocab_of(stored), plugins, loaded.device);
  load_weights(*loaded.model, stored);
  stored.tensors.clear();
  stored.memory.reset();
  cast_weights(*loaded.model, compute_dtype(loaded.experiment.train));
  return loaded;
}

}  // namespace dsv3
