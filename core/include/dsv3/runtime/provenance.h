// Where, when and with what a run was started, for provenance.json.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <dsv3/support/json.h>

namespace dsv3 {

/// {"time", "command", "directory", "host", "pid", "dsv3", "libtorch", "compiler", "git":
/// {"folder", "commit", "dirty"} or null, "threads", "cpu": {"model", "cores", "capability",
/// "features"}}. A run repeats bit for bit only where threads and capability are equal. `source`
/// is the folder whose git commit is recorded; only tracked files make it dirty. Never throws:
/// what cannot be determined is null.
Json provenance(const std::vector<std::string>& command, const std::filesystem::path& source);

}  // namespace dsv3
