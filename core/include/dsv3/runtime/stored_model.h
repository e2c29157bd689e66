// Models on disk, whatever keeps them (a run, a checkpoint, a Hugging Face folder), and models
// loaded from there to compute with.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/runtime/experiment.h>
#include <dsv3/runtime/model.h>
#include <dsv3/runtime/plugins.h>
#include <dsv3/sdk/tokenizer.h>

namespace dsv3 {

/// A model as it lies on disk: its description, and its weights under a checkpoint's names.
struct StoredModel {
  std::filesystem::path path;  ///< the checkpoint's folder, or the Hugging Face folder
  std::string config;          ///< YAML of a whole experiment that builds the model
  /// What `config` means; of a checkpoint as it was saved, see Experiment::conventions.
  std::map<std::string, std::string> conventions;
  /// Tokenizer::digest() of the tokenizers that give the ids it was trained on; empty: not known.
  std::set<std::string> tokenizers;
  int64_t step = 0;  ///< optimizer steps behind the weights; 0 when not known
  /// Of a Hugging Face folder, and a checkpoint made from one: "BF16" ... by the name of the stored
  /// tensor.
  std::map<std::string, std::string> dtypes;
  /// fp32 "model/<parameter>" and "buffer/<buffer>", and whatever else a checkpoint holds.
  std::map<std::string, safetensors::View> tensors;
  std::shared_ptr<const void> memory;  ///< what the views point into
};

/// Finds a model at `path`: a checkpoint folder (manifest.json), a run folder (its newest
/// checkpoint), or a Hugging Face folder (config.json). Throws dsv3::Error (ExitCode::checkpoint)
/// for anything else and for damaged files; a Hugging Face model that cannot be expressed is
/// ExitCode::usage. `tokenizer`: the tokenizer.json of a Hugging Face folder, if not its own.
StoredModel open_stored_model(const std::filesystem::path& path, Plugins& plugins,
                              const std::filesystem::path& tokenizer = {});

/// Whether `tokenizer` may give the ids that the model was trained on.
bool fits(const Tokenizer& tokenizer, const StoredModel& stored);

/// The model of a checkpoint that was verified before.
StoredModel stored_model_of(const StoredCheckpoint& checkpoint);

/// What to load, and onto what. An empty device, precision or threads: as the model's experiment
/// says.
struct LoadRequest {
  std::filesystem::path path;
  std::string device = "auto";     ///< auto | cpu | cuda
  std::string precision = "auto";  ///< auto | fp32 | bf16, as train.precision
  std::string threads = "auto";    ///< auto | a number, for Experiment::train
  std::string tokenizer;           ///< a tokenizer.json instead of the model's own; empty = its own
  bool with_tokenizer = true;      ///< false: it is not opened, so its file may be gone
};

/// A model with its weights, without a strategy, ready for logits, generation and evaluation.
struct LoadedModel {
  StoredModel stored;  ///< tensors and memory already let go
  Experiment experiment;
  at::Device device = at::kCPU;
  std::unique_ptr<Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;  ///< null: the model names none
};

/// Throws dsv3::Error naming the model's path. Sets torch's thread count only if the caller did
/// not.
LoadedModel load_model(const LoadRequest& request, Plugins& plugins);

/// What an error of "conventions differ" lists: a line each, "" when none differs; with `advice`
/// it says what to set.
std::string convention_differences(const std::map<std::string, std::string>& stored,
                                   const std::map<std::string, std::string>& wanted,
                                   bool advice = false);

/// Throws dsv3::Error (ExitCode::checkpoint) unless `experiment` has the conventions that `stored`
/// was made under; it names the file that says so and what to set. Those of optimizers count only
/// with `optimizers`: who takes nothing but weights may go on with another one.
void require_conventions(const StoredModel& stored, const Experiment& experiment, bool optimizers);

/// The file that holds a stored model's settings: manifest.json or config.json.
std::filesystem::path settings_file(const StoredModel& stored);

/// Parameters and buffers of `model`, which lives in plain tensors on one device, from `stored`.
void load_weights(Model& model, const StoredModel& stored);

}  // namespace dsv3
