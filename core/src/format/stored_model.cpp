#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/error.h>

#include "format/folder.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

std::string tokenizer_digest_of(const Json& state) {
  const Json& digest = state.at("tokenizer");
  return digest.is_null() ? "" : digest.get<std::string>();
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

}  // namespace

StoredModel stored_model_of(const StoredCheckpoint& checkpoint) {
  const auto file =
      std::make_shared<const safetensors::File>(checkpoint.folder / "rank-00000.safetensors");
  const Json& state = checkpoint.manifest.at("state");
  StoredModel stored;
  stored.path = checkpoint.folder;
  stored.config = state.at("config").get<std::string>();
  stored.conventions = state.at("conventions").get<std::map<std::string, std::string>>();
  stored.tokenizer_digest = tokenizer_digest_of(state);
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
                                   const std::map<std::string, std::string>& wanted) {
  std::string text;
  for (const auto& [key, value] : wanted) {
    const auto found = stored.find(key);
    const std::string there = found == stored.end() ? "absent" : found->second;
    if (there != value)
      text += "\n  " + key + ": checkpoint " + there + ", this experiment " + value;
  }
  for (const auto& [key, value] : stored)
    if (!wanted.contains(key))
      text += "\n  " + key + ": checkpoint " + value + ", this experiment absent";
  return text;
}

}  // namespace dsv3
