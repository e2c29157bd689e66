// index.json, the list of the shards in a folder that `dsv3 data prepare` wrote.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace dsv3 {

inline constexpr const char* kShardExtension = ".tokens";
inline constexpr const char* kTokenIndexName = "index.json";
inline constexpr const char* kTokenIndexFormat = "dsv3-tokens";

/// SHA-256 of a shard's header, which has a digest of everything else in the shard.
std::string shard_digest(const std::filesystem::path& shard);

/// Requires the shards `found` in `folder` to be those in its index, if it has one. Throws
/// dsv3::Error (ExitCode::data) that names the missing, additional or exchanged shards.
void check_token_index(const std::string& folder, const std::vector<std::string>& found);

}  // namespace dsv3
