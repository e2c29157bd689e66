// JSON parser with limits on size and depth. Errors contain the line and column.
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
/// Converts the result of number_to_json() back to a number. Throws dsv3::Error for any other JSON.
double number_from_json(const Json& value);

}  // namespace dsv3
