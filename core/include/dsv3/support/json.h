// JSON parser with limits on size and depth. Errors contain line and column.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace dsv3 {

using Json = nlohmann::json;

/// Parses `text`. Throws dsv3::Error "<origin>:line:col: ..." for invalid JSON, nesting deeper than
/// 64 levels, and duplicate keys.
Json parse_json(std::string_view text, const std::string& origin);
/// Parses a file of at most 256 MiB.
Json read_json(const std::filesystem::path& path);

/// Converts a number to JSON. NaN and infinities, which JSON cannot represent, become "NaN",
/// "Infinity" and "-Infinity", as in metrics.jsonl.
Json number_to_json(double value);
/// Throws dsv3::Error if `value` is neither a number nor one of these strings.
double number_from_json(const Json& value);

}  // namespace dsv3
