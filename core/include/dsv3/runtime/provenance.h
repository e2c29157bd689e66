// Where and with what a run was made, for provenance.json.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <dsv3/support/json.h>

namespace dsv3 {

/// {"time", "command", "directory", "host", "pid", "dsv3", "libtorch", "compiler", "git":
/// {"folder", "commit", "dirty"} or null, "threads", "cpu": {"model", "cores", "capability",
/// "features"}}. Numbers of one run repeat bit for bit only where threads and capability are equal.
/// `source` is the folder whose git commit counts; tracked files decide what is dirty. Never throws
/// for what cannot be found out: that is null.
Json provenance(const std::vector<std::string>& command, const std::filesystem::path& source);

/// Seconds since the epoch as UTC text, 2026-01-31T23:59:59Z.
std::string utc_text(double seconds);

/// This machine's name.
std::string host_name();

}  // namespace dsv3
