// dsv3.json beside an exported config.json: what a Hugging Face configuration cannot say.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>

namespace dsv3 {

struct Sidecar {
  std::map<std::string, std::string> conventions;  ///< as Experiment::conventions; empty: no file
  std::set<std::string> tokenizers;                ///< as StoredModel::tokenizers
  int64_t step = 0;                                ///< optimizer steps behind the weights
};

inline constexpr const char* kSidecarName = "dsv3.json";

/// An empty one when the folder has none. Throws dsv3::Error (ExitCode::checkpoint) for a damaged
/// one.
Sidecar read_sidecar(const std::filesystem::path& folder);
std::string sidecar_text(const Sidecar& sidecar);

}  // namespace dsv3
