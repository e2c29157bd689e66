// Hugging Face folders: config.json beside safetensors files, through the format plugin that
// config.json's model_type names.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/format.h>

#include "format/sidecar.h"

namespace dsv3 {

/// `config` without the fields of config.json that mean the same for every architecture, or nothing
/// for a model's values: formats neither see nor write them.
Json without_common_fields(Json config);

/// The experiment of a model that a format described, with the conventions that `sidecar` states
/// and the description does not. `tokenizer` may be empty.
Experiment experiment_of(ModelDescription model, const std::string& name,
                         const std::filesystem::path& tokenizer, const Sidecar& sidecar,
                         Plugins& plugins);

/// Reads a whole Hugging Face folder; `tokenizer` and errors as open_stored_model says.
StoredModel read_folder(const std::filesystem::path& folder, Plugins& plugins,
                        const std::filesystem::path& tokenizer = {});

/// All tensors of a folder's safetensors files: model.safetensors, or the shards that
/// model.safetensors.index.json names.
class FolderTensors {
 public:
  /// Throws dsv3::Error (ExitCode::checkpoint) when a file is missing, damaged or holds other
  /// tensors than the index says.
  explicit FolderTensors(const std::filesystem::path& folder);
  const std::map<std::string, safetensors::View>& tensors() const { return tensors_; }

 private:
  void add_file(const std::filesystem::path& file);

  std::vector<std::unique_ptr<safetensors::File>> files_;
  std::map<std::string, safetensors::View> tensors_;
};

/// `place.rows` and `place.first_row` as indices into the source's rows; undefined: a plain range.
at::Tensor row_index(const TensorPlace& place);

}  // namespace dsv3
