// Import of a model from a Hugging Face folder.
#include <dsv3/runtime/convert.h>
#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/tokenizer.h>
#include <dsv3/support/fs.h>

#include "format/folder.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

/// Makes the experiment read its tokenizer from `file`.
void set_tokenizer_file(Experiment& experiment, const stdfs::path& file) {
  experiment.tokenizer.options["file"] = file.string();
  experiment.resolved.set("data.tokenizer.file", file.string(), {"dsv3 import"});
}

void remove_tokenizer(Experiment& experiment) {
  experiment.tokenizer = {};
  std::erase_if(experiment.resolved.values, [](const ResolvedValue& value) {
    return value.path.starts_with("data.tokenizer.");
  });
}

/// The folder's tokenizer; null, with a note, when it has none that dsv3 can read.
std::shared_ptr<const Tokenizer> tokenizer_of(const Experiment& experiment, Plugins& plugins,
                                              std::vector<std::string>& notes) {
  if (experiment.tokenizer.plugin.empty()) {
    notes.emplace_back(
        "the folder has no tokenizer.json: pass one with --tokenizer to commands that need text");
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
    throw Error(checkpoint.string() + " already exists; choose another folder", ExitCode::usage);
  if (!stdfs::exists(folder / "config.json", ignored))
    throw Error(folder.string() + (stdfs::exists(folder, ignored)
                                       ? " is not a Hugging Face folder: it has no config.json"
                                       : " does not exist"),
                ExitCode::checkpoint);
  const StoredModel stored = read_folder(folder, plugins);
  std::vector<std::string> notes;
  Experiment experiment = *stored.experiment;
  CheckpointContent content;
  content.step = stored.step;
  content.tensors = stored.tensors;
  std::set<std::string> tokenizers = stored.tokenizers;
  if (const auto tokenizer = tokenizer_of(experiment, plugins, notes)) {
    content.files["tokenizer.json"] = fs::read(folder / "tokenizer.json");
    set_tokenizer_file(experiment, stdfs::absolute(checkpoint / "tokenizer.json"));
    if (!fits(*tokenizer, stored))
      throw Error((folder / "tokenizer.json").string() +
                      " is not the tokenizer that the model was exported with (dsv3.json)",
                  ExitCode::checkpoint);
    tokenizers.insert(tokenizer->digest());
  } else {
    remove_tokenizer(experiment);
  }
  const std::string config = experiment.resolved.yaml();
  content.files["experiment.yaml"] = config;
  content.state = {{"config", config},
                   {"conventions", experiment.conventions},
                   {"tokenizer", tokenizers},
                   {"dtypes", stored.dtypes}};
  write_checkpoint(checkpoint, content);
  return notes;
}

}  // namespace dsv3
