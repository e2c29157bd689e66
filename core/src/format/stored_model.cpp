#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/error.h>

#include "config/parse.h"
#include "config/slots.h"
#include "format/folder.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

/// Of an imported model several, which give the same ids.
std::set<std::string> digests_of(const Json& tokenizer) {
  if (tokenizer.is_null()) return {};
  if (tokenizer.is_string()) return {tokenizer.get<std::string>()};
  return tokenizer.get<std::set<std::string>>();
}

[[noreturn]] void refuse(const stdfs::path& path) {
  std::error_code ignored;
  if (!stdfs::exists(path, ignored))
    throw Error(path.string() +
                    " is not there; name a run folder, a checkpoint or a Hugging Face "
                    "folder",
                ExitCode::checkpoint);
  if (!stdfs::is_directory(path, ignored))
    throw Error(path.string() +
                    " is a file, but a model is a folder: a checkpoint with manifest.json, such as "
                    "runs/NAME/checkpoints/step-N, a run folder with one, or a Hugging Face folder "
                    "with config.json; files of PyTorch are not read",
                ExitCode::checkpoint);
  throw Error(path.string() +
                  " is neither a checkpoint (a folder with manifest.json) nor a run with one nor a "
                  "Hugging Face folder (config.json)",
              ExitCode::checkpoint);
}

/// "position.rope.layout" is the option model.position.layout; keys of the core are paths already.
std::string path_of_convention(const std::string& key) {
  const size_t first = key.find('.'), second = key.find('.', first + 1);
  for (const config::Slot& slot : config::slots())
    if (kind_name(slot.kind) == key.substr(0, first))
      return std::string(slot.path) + key.substr(second, key.find(' ') - second);
  return key;
}

/// model.conventions of the experiment that was stored; older ones do not say it.
std::string implementation_of(const StoredModel& stored) {
  config::Diagnostics diagnostics;
  const int source = diagnostics.add_source(stored.path.string(), stored.config, false);
  const auto tree = config::parse(diagnostics, source, 0);
  const config::Node* said = tree ? config::find_path(*tree, "model.conventions") : nullptr;
  return said ? said->text : ModelOptions().conventions;
}

}  // namespace

bool fits(const Tokenizer& tokenizer, const StoredModel& stored) {
  return stored.tokenizers.empty() || stored.tokenizers.contains(tokenizer.digest());
}

StoredModel stored_model_of(const StoredCheckpoint& checkpoint) {
  const auto file =
      std::make_shared<const safetensors::File>(checkpoint.folder / "rank-00000.safetensors");
  const Json& state = checkpoint.manifest.at("state");
  StoredModel stored;
  stored.path = checkpoint.folder;
  stored.config = state.at("config").get<std::string>();
  stored.conventions = state.at("conventions").get<std::map<std::string, std::string>>();
  stored.tokenizers = digests_of(state.at("tokenizer"));
  stored.dtypes = state.value("dtypes", std::map<std::string, std::string>());
  stored.step = checkpoint.step;
  stored.tensors = file->tensors();
  stored.memory = file;
  return stored;
}

StoredModel open_stored_model(const stdfs::path& path, Plugins& plugins,
                              const stdfs::path& tokenizer) {
  std::error_code ignored;
  if (stdfs::exists(path / "manifest.json", ignored))
    return stored_model_of(verify_checkpoint(path));
  if (stdfs::is_directory(path / "checkpoints", ignored))
    if (const auto newest = CheckpointStore(path / "checkpoints", 0).newest())
      return stored_model_of(*newest);
  if (stdfs::exists(path / "config.json", ignored)) return read_folder(path, plugins, tokenizer);
  refuse(path);
}

std::string convention_differences(const std::map<std::string, std::string>& stored,
                                   const std::map<std::string, std::string>& wanted, bool advice) {
  std::string text;
  for (const auto& [key, value] : wanted) {
    const auto found = stored.find(key);
    const std::string there = found == stored.end() ? "absent" : found->second;
    if (there == value) continue;
    text += "\n  " + key + ": checkpoint " + there + ", this experiment " + value;
    if (advice && found != stored.end()) text += "; set " + path_of_convention(key) + ": " + there;
  }
  for (const auto& [key, value] : stored)
    if (!wanted.contains(key))
      text += "\n  " + key + ": checkpoint " + value + ", this experiment absent";
  return text;
}

void require_conventions(const StoredModel& stored, const Experiment& experiment, bool optimizers) {
  std::map<std::string, std::string> there = stored.conventions, here = experiment.conventions;
  const auto of_optimizer = [&](const auto& each) {
    return !optimizers && each.first.starts_with(kind_name(Kind::optimizer) + std::string("."));
  };
  std::erase_if(there, of_optimizer);
  std::erase_if(here, of_optimizer);
  const std::string differences = convention_differences(there, here, true);
  if (differences.empty()) return;
  const std::string implementation = implementation_of(stored);
  const bool other = experiment.model.conventions != implementation;
  throw Error(
      settings_file(stored).string() + " was made under other conventions:" + differences +
          "\nSet " +
          (other ? "model.conventions: " + implementation + ", as the checkpoint has it, or "
                 : "") +
          "these options and plugins as the checkpoint has them, or start without it",
      ExitCode::checkpoint);
}

std::filesystem::path settings_file(const StoredModel& stored) {
  std::error_code ignored;
  const bool own = stdfs::exists(stored.path / "manifest.json", ignored);
  return stored.path / (own ? "manifest.json" : "config.json");
}

}  // namespace dsv3
