// A model in from a Hugging Face folder.
#include <dsv3/runtime/convert.h>
#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/tokenizer.h>
#include <dsv3/support/fs.h>

#include "format/folder.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

/// The experiment of the stored model.
Experiment experiment_of(const StoredModel& stored, Plugins& plugins,
                         const std::vector<std::string>& settings) {
  ExperimentRequest request;
  request.file = stored.path / "config.json";
  request.text = stored.config;
  request.forced = settings;
  request.forced_label = "dsv3 import";
  PluginCatalog catalog(plugins);
  return load_experiment(request, catalog);
}

/// The folder's tokenizer; null when there is none that we can read, which is noted.
std::shared_ptr<const Tokenizer> tokenizer_of(const Experiment& experiment, Plugins& plugins,
                                              std::vector<std::string>& notes) {
  if (experiment.tokenizer.plugin.empty()) {
    notes.emplace_back(
        "the folder has no tokenizer.json: name one with --tokenizer where text is "
        "needed");
    return nullptr;
  }
  try {
    return make<Tokenizer>(plugins, experiment.tokenizer, TokenizerContext{});
  } catch (const Error& error) {
    notes.emplace_back(std::string("imported without its tokenizer: ") + error.what());
    return nullptr;
  }
}

}  // namespace

std::vector<std::string> import_model(const stdfs::path& folder, const stdfs::path& checkpoint,
                                      Plugins& plugins) {
  std::error_code ignored;
  if (stdfs::exists(checkpoint, ignored))
    throw Error(checkpoint.string() + " is there already; name a new folder", ExitCode::usage);
  if (!stdfs::exists(folder / "config.json", ignored))
    throw Error(folder.string() + (stdfs::exists(folder, ignored)
                                       ? " is no Hugging Face folder: it has no config.json"
                                       : " is not there"),
                ExitCode::checkpoint);
  const StoredModel stored = read_folder(folder, plugins);
  std::vector<std::string> notes;
  Experiment experiment = experiment_of(stored, plugins, {});
  CheckpointContent content;
  content.step = stored.step;
  content.tensors = stored.tensors;
  Json digest;
  if (const auto tokenizer = tokenizer_of(experiment, plugins, notes)) {
    content.files["tokenizer.json"] = fs::read(folder / "tokenizer.json");
    experiment = experiment_of(
        stored, plugins,
        {"data.tokenizer.file=" + stdfs::absolute(checkpoint / "tokenizer.json").string()});
    digest = tokenizer->digest();
    if (!stored.tokenizer_digest.empty() && digest != stored.tokenizer_digest)
      throw Error((folder / "tokenizer.json").string() +
                      " is not the tokenizer that the model was exported with (dsv3.json)",
                  ExitCode::checkpoint);
  } else {
    experiment = experiment_of(stored, plugins, {"data.tokenizer=null"});
  }
  content.files["experiment.yaml"] = experiment.resolved;
  content.state = {{"config", experiment.resolved},
                   {"conventions", experiment.conventions},
                   {"tokenizer", digest},
                   {"dtypes", stored.dtypes}};
  write_checkpoint(checkpoint, content);
  return notes;
}

}  // namespace dsv3
