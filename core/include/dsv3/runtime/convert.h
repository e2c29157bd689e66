// Exports models to Hugging Face folders and imports models from them.
#pragma once

#include <dsv3/runtime/stored_model.h>

namespace dsv3 {

struct ExportRequest {
  std::filesystem::path model;   ///< anything that open_stored_model accepts
  std::filesystem::path folder;  ///< folder to create; must not exist
  std::string
      format;       ///< name of a format plugin; empty = the first one that can express the model
  bool mtp = true;  ///< false = leave out MTP modules
  std::string dtype = "auto";              ///< auto (as imported, else fp32) | fp32 | bf16
  int64_t shard_bytes = int64_t{5} << 30;  ///< maximum size of a weight file in bytes; 0 = no limit
  std::string tokenizer;                   ///< as LoadRequest::tokenizer
};

struct ExportResult {
  std::string format;
  int64_t tensors = 0, bytes = 0, files = 0;  ///< of weights
  std::vector<std::string> notes;
};

/// Writes config.json, generation_config.json, safetensors, the tokenizer's files and dsv3.json.
/// Removes them again on error. Throws dsv3::Error (ExitCode::usage) with each format's reasons if
/// no format can express the model.
ExportResult export_model(const ExportRequest& request, Plugins& plugins);

/// Converts the model in a Hugging Face folder to a checkpoint and adds an experiment.yaml that
/// continues training it. `checkpoint` must not exist and is deleted on error. Returns notes for
/// the user.
std::vector<std::string> import_model(const std::filesystem::path& folder,
                                      const std::filesystem::path& checkpoint, Plugins& plugins);

}  // namespace dsv3
