#include "data/token_index.h"

#include <array>
#include <fstream>
#include <map>

#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>
#include <dsv3/support/sha256.h>

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

constexpr size_t kHeaderBytes = 256;

[[noreturn]] void fail(const std::string& what) {
  throw Error(what, ExitCode::data);
}

/// The digest of each shard in an index, by file name; "" in the index of an older version.
std::map<std::string, std::string> listed_shards(const Json& index, const stdfs::path& file) {
  std::map<std::string, std::string> shards;
  for (const Json& shard : index.at("shards")) {
    const std::string name = shard.at("file");
    if (!shards.emplace(name, shard.value("header", "")).second)
      fail(file.string() + " lists " + name + " twice");
  }
  return shards;
}

/// Returns nullopt if `file` is the index of something else.
std::optional<std::map<std::string, std::string>> read_index(const stdfs::path& file,
                                                             bool has_shard) {
  try {
    const Json index = read_json(file);
    if (index.is_object() && index.value("format", Json()) == kTokenIndexFormat)
      return listed_shards(index, file);
    if (!has_shard || (index.is_object() && index.contains("format"))) return std::nullopt;
    fail(file.string() + " has no format, so it is damaged");
  } catch (const std::exception& error) {
    if (!has_shard) return std::nullopt;
    const std::string what = error.what();
    fail((what.find(file.string()) == what.npos ? file.string() + ": " : "") + what +
         "; copy it again, or remove it to read all shards of the folder");
  }
}

}  // namespace

std::string shard_digest(const stdfs::path& shard) {
  std::array<char, kHeaderBytes> header{};
  std::ifstream file(shard, std::ios::binary);
  file.read(header.data(), kHeaderBytes);
  return sha256({header.data(), size_t(file.gcount())});
}

void check_token_index(const std::string& folder, const std::vector<std::string>& found) {
  const stdfs::path file = stdfs::path(folder) / kTokenIndexName;
  std::error_code ignored;
  if (!stdfs::exists(stdfs::symlink_status(file, ignored))) return;
  const bool has_shard = std::any_of(found.begin(), found.end(), [](const std::string& name) {
    return name.ends_with(kShardExtension);
  });
  auto listed = read_index(file, has_shard);
  if (!listed) return;
  for (const std::string& path : found) {
    const auto shard = listed->find(stdfs::path(path).filename().string());
    if (shard == listed->end())
      fail(path + " is not in " + file.string() +
           "; move it to another folder, or remove the index to read all files of the folder");
    if (!shard->second.empty() && shard->second != shard_digest(path))
      fail(path + " is not the shard of this name in " + file.string() +
           ": it was damaged or exchanged; copy it again, or prepare the data again");
    listed->erase(shard);
  }
  if (listed->empty()) return;
  std::string names;
  for (const auto& [name, digest] : *listed)
    names += (names.empty() ? "" : ", ") + (stdfs::path(folder) / name).string();
  fail("missing shards that " + file.string() + " lists: " + names +
       "; copy them again, or prepare the data again");
}

}  // namespace dsv3
