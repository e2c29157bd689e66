// A model's logits of given tokens, as a file: what other implementations are compared with.
#pragma once

#include <filesystem>
#include <string>

#include <dsv3/runtime/stored_model.h>

namespace dsv3 {

struct LogitsRequest {
  LoadRequest model;             ///< its tokenizer is not needed
  std::filesystem::path tokens;  ///< JSON: a list of B lists of T ids
  std::filesystem::path out;     ///< safetensors to write
};

/// Writes `logits` fp32 [B, T, V] and, when the model has MTP modules, `mtp_logits` fp32 [depth, B,
/// T, V]: module k's at position t predict token t + k + 2; the last k + 1 positions of a row,
/// whose input tokens are not given, are NaN. Returns the shapes in words. Throws dsv3::Error:
/// ExitCode::usage for ids that the model does not have.
std::string write_logits(const LogitsRequest& request, Plugins& plugins);

}  // namespace dsv3
