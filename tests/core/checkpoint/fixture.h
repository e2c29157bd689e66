// Helpers for the checkpoint tests: small checkpoints and captured log lines.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/support/sha256.h>

#include "core/support/temporary_folder.h"

/// Collects logged warnings and errors during its lifetime; defined in log_capture.cpp.
struct LogCapture {
  LogCapture();
  ~LogCapture();
  LogCapture(const LogCapture&) = delete;
  std::vector<std::string> lines;
};

/// Checkpoint content that depends on the step and the loss.
struct TestContent {
  std::vector<float> weight{1, 2, 3, 4, 5, 6};
  std::string random = "0123456789";
  dsv3::CheckpointContent content;

  TestContent(int64_t step, std::optional<double> val_loss) {
    for (float& w : weight)
      w += static_cast<float>(step) + static_cast<float>(val_loss.value_or(0));
    content.step = step;
    content.tokens = 1000 * step;
    content.val_loss = val_loss;
    content.tensors["layers.0.weight"] = {"F32", {2, 3}, weight.data(), 24};
    content.tensors["rng"] = {"U8", {10}, random.data(), 10};
    content.state = {{"data", {{"row", 12 * step}, {"share", 0.1}}}, {"strategy", "single"}};
  }
  TestContent(const TestContent&) = delete;
};

/// Whether the tensors on disk match the expected content.
inline bool holds(const dsv3::StoredCheckpoint& stored, const TestContent& expected) {
  dsv3::safetensors::File file(stored.folder / "rank-00000.safetensors");
  if (file.tensors().size() != expected.content.tensors.size()) return false;
  for (const auto& [name, view] : expected.content.tensors) {
    const auto& read = file.tensors().at(name);
    if (read.dtype != view.dtype || read.shape != view.shape || read.size != view.size)
      return false;
    if (std::memcmp(read.bytes, view.bytes, view.size) != 0) return false;
  }
  return true;
}

inline std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}
