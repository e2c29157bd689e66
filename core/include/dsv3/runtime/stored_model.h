// Models stored in a run, a checkpoint or a Hugging Face folder, and models loaded from them.
#pragma once

#include <set>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/runtime/model.h>
#include <dsv3/runtime/stored_tensors.h>
#include <dsv3/sdk/tokenizer.h>

namespace dsv3 {

/// A model on disk: its description and its weights. Tensors have the same names as in checkpoints.
struct StoredModel {
  std::filesystem::path path;  ///< the checkpoint's folder, or the Hugging Face folder
  ExperimentRequest source;    ///< the experiment that builds the model
  std::optional<Experiment>
      experiment;  ///< only for a Hugging Face folder: the experiment loaded from `source`
  /// As in Experiment::conventions. For a checkpoint, the conventions with which it was saved.
  std::map<std::string, std::string> conventions;
  /// Digests (see Tokenizer::digest()) of all tokenizers that produce the ids on which the model
  /// was trained; empty = unknown.
  std::set<std::string> tokenizers;
  int64_t step = 0;  ///< number of optimizer steps for which the model was trained; 0 = unknown
  /// Dtypes on disk such as "BF16", by tensor name, for a Hugging Face folder and for a checkpoint
  /// imported from one.
  std::map<std::string, std::string> dtypes;
  /// fp32 "model/<parameter>" and "buffer/<buffer>", and all other tensors in a checkpoint.
  StoredTensors tensors;

  /// Returns the resolved values of the model's experiment.
  Resolved resolved() const;
  /// Loads the model's experiment, with `settings` as overrides.
  Experiment load(Plugins& plugins, const std::vector<Setting>& settings = {}) const;
};

/// Finds a model at `path`: a checkpoint folder (manifest.json), a run folder (its newest
/// checkpoint), or a Hugging Face folder (config.json). Where a checkpoint has evaluation weights
/// (see Optimizer::evaluation_weights()), they replace the weights that are trained. Throws
/// dsv3::Error: with ExitCode::usage for a Hugging Face model that dsv3 cannot express, and with
/// ExitCode::checkpoint if `path` is not a model or a file is damaged. `tokenizer` is a
/// tokenizer.json to use instead of the one in a Hugging Face folder.
StoredModel open_stored_model(const std::filesystem::path& path, Plugins& plugins,
                              const std::filesystem::path& tokenizer = {});

/// Whether the model may have been trained with `tokenizer`.
bool fits(const Tokenizer& tokenizer, const StoredModel& stored);

/// Returns the model in a verified checkpoint, with the weights that are trained.
StoredModel stored_model_of(const StoredCheckpoint& checkpoint);

/// How to load a model. If `device` or `precision` is empty, uses the one in the model's
/// experiment.
struct LoadRequest {
  std::filesystem::path path;
  std::string device = "auto";     ///< auto | cpu | cuda
  std::string precision = "auto";  ///< auto | fp32 | bf16, as train.precision
  bool keep_threads = false;       ///< true = use the thread count of the model's experiment
  std::string tokenizer;           ///< a tokenizer.json that replaces the model's; empty = use the
                                   ///< model's
  bool with_tokenizer = true;      ///< false = do not load the tokenizer; its file may be missing
};

/// A model with its weights, ready for logits, generation and evaluation, without a strategy.
struct LoadedModel {
  StoredModel stored;  ///< without tensors, so that it uses little memory
  Experiment experiment;
  at::Device device = at::kCPU;
  std::unique_ptr<Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;  ///< null = the model has none
};

/// Loads a model. Errors are dsv3::Error and contain the model's path. Does not change torch's
/// thread count.
LoadedModel load_model(const LoadRequest& request, Plugins& plugins);

/// Lists the conventions that differ, one per line; "" if none differ. With `advice`, each line
/// also contains the setting to change.
std::string convention_differences(const std::map<std::string, std::string>& stored,
                                   const std::map<std::string, std::string>& current,
                                   bool advice = false);

/// Throws dsv3::Error (ExitCode::checkpoint) unless `experiment` has the same conventions as
/// `stored`. The error names the file that sets them and suggests a fix. Optimizer conventions are
/// compared only if `optimizers` is true, because a run that loads only weights may use a different
/// optimizer.
void require_conventions(const StoredModel& stored, const Experiment& experiment, bool optimizers);

/// Returns the file that contains a stored model's settings: manifest.json or config.json.
std::filesystem::path settings_file(const StoredModel& stored);

/// Loads the parameters and buffers of `model`, which no strategy owns, from `stored`.
void load_weights(Model& model, const StoredModel& stored);

}  // namespace dsv3
