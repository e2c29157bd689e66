// A model's logits for given tokens, written to a file to compare with other implementations.
#pragma once

#include <filesystem>
#include <string>

#include <dsv3/runtime/stored_model.h>

namespace dsv3 {

struct LogitsRequest {
  LoadRequest model;             ///< its tokenizer is not loaded
  std::filesystem::path tokens;  ///< JSON: a list of B lists of T ids
  std::filesystem::path out;     ///< safetensors to write
};

/// Writes `logits` fp32 [B, T, V] and, when the model has MTP modules, `mtp_logits` fp32 [depth, B,
/// T, V]: module k's logits at position t predict token t + k + 2; they are NaN at the last k + 1
/// positions of a row, whose input tokens are unknown. Returns a description of the shapes. Throws
/// dsv3::Error: ExitCode::usage for ids outside the vocabulary.
std::string write_logits(const LogitsRequest& request, Plugins& plugins);

}  // namespace dsv3
