// Hugging Face folders: config.json and safetensors files, read by the format plugin for
// config.json's model_type.
#pragma once

#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/format.h>

namespace dsv3 {

/// Returns `config` without the fields that formats neither read nor write: those that have the
/// same meaning in every architecture, and those that do not affect a model's outputs.
Json without_common_fields(Json config);

/// The content of dsv3.json, a file next to an exported config.json with everything that
/// config.json cannot express.
struct Sidecar {
  std::map<std::string, std::string> conventions;  ///< see Experiment::conventions; empty = no file
  std::set<std::string> tokenizers;                ///< see StoredModel::tokenizers
  int64_t step = 0;                                ///< see StoredModel::step
};

inline constexpr const char* kSidecarName = "dsv3.json";

/// Returns an empty Sidecar if the folder has none. Throws dsv3::Error (ExitCode::checkpoint) if it
/// is damaged.
Sidecar read_sidecar(const std::filesystem::path& folder);
std::string sidecar_text(const Sidecar& sidecar);

/// Creates the experiment for a model described by a format, with those conventions in `sidecar`
/// that the description does not set. `tokenizer` may be empty.
Experiment experiment_of(const ModelDescription& model, const std::string& name,
                         const std::filesystem::path& tokenizer, const Sidecar& sidecar,
                         Plugins& plugins);

/// Reads a whole Hugging Face folder. `tokenizer` and errors are as in open_stored_model.
StoredModel read_folder(const std::filesystem::path& folder, Plugins& plugins,
                        const std::filesystem::path& tokenizer = {});

/// All tensors in a folder's safetensors files: model.safetensors, or the shards listed in
/// model.safetensors.index.json.
class FolderTensors {
 public:
  /// Throws dsv3::Error (ExitCode::checkpoint) if a file is missing or damaged, or if its tensors
  /// differ from those in the index.
  explicit FolderTensors(const std::filesystem::path& folder);
  const std::map<std::string, safetensors::View>& tensors() const { return tensors_; }

 private:
  void add_file(const std::filesystem::path& file);

  std::vector<std::unique_ptr<safetensors::File>> files_;
  std::map<std::string, safetensors::View> tensors_;
};

/// Returns the indices of the source rows that `place.rows` and `place.first_row` select; undefined
/// for a contiguous range.
at::Tensor row_index(const TensorPlace& place);

/// Returns the `count` rows of `source` [rows, ...] that `place` selects.
at::Tensor select_rows(const at::Tensor& source, const TensorPlace& place, int64_t count);

}  // namespace dsv3
