// Loads a stored model to compute with: plain tensors, no strategy, no optimizer.
#include <ATen/ATen.h>

#include <dsv3/runtime/machine.h>
#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/error.h>

#include "checkpoint/tensor_views.h"
#include "machine/machine.h"

namespace dsv3 {
namespace {

Experiment experiment_of(const StoredModel& stored, const LoadRequest& request, Plugins& plugins) {
  std::vector<Setting> settings;
  if (!stored.experiment) {
    // A folder that was moved has its tokenizer beside the weights.
    std::filesystem::path tokenizer = request.tokenizer;
    if (tokenizer.empty() && std::filesystem::exists(stored.path / "tokenizer.json"))
      tokenizer = stored.path / "tokenizer.json";
    if (!tokenizer.empty())
      settings.push_back({"data.tokenizer.file", std::filesystem::absolute(tokenizer).string(),
                          request.tokenizer.empty() ? stored.path.string() : "--tokenizer"});
  }
  Experiment experiment = stored.experiment ? *stored.experiment : stored.load(plugins, settings);
  // It may have been trained on another machine.
  set_machine(experiment, request.device, request.precision, "command line");
  if (!request.keep_threads) experiment.train.threads.reset();
  resolve_machine(experiment);
  return experiment;
}

/// Rows of the stored embedding: `model.vocab: auto` depends on the tokenizer, which may be
/// missing.
int64_t vocab_of(const StoredModel& stored) {
  const auto found = stored.tensors.find("model/embedding.weight");
  if (found == stored.tensors.end() || found->second.shape.size() != 2)
    throw Error(stored.path.string() + " has no embedding of shape [vocabulary, hidden]",
                ExitCode::checkpoint);
  return found->second.shape[0];
}

/// Null when the model has none. Rejects a tokenizer other than the one the model was trained with,
/// which would produce nonsense.
std::shared_ptr<const Tokenizer> tokenizer_of(const StoredModel& stored,
                                              const Experiment& experiment, Plugins& plugins) {
  if (experiment.tokenizer.plugin.empty()) return nullptr;
  std::shared_ptr<const Tokenizer> tokenizer =
      make<Tokenizer>(plugins, experiment.tokenizer, TokenizerContext{});
  if (!fits(*tokenizer, stored))
    throw Error(stored.path.string() + " was trained with a tokenizer other than this '" +
                    experiment.tokenizer.plugin +
                    "': pass the one it was trained with by --tokenizer",
                ExitCode::checkpoint);
  return tokenizer;
}

/// Casts the weights that do not need fp32.
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
  const std::string differences =
      convention_differences(stored.conventions, loaded.experiment.conventions);
  if (!differences.empty())
    throw Error(stored.path.string() +
                    " has conventions that this dsv3 or its plugins no longer have:" + differences,
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
