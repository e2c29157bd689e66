// JSON with limits and errors that say where.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace dsv3 {

using Json = nlohmann::json;

/// Parses `text`; throws dsv3::Error "<origin>:line:col: ..." on bad JSON, on nesting deeper than
/// 64 and on duplicate keys.
Json parse_json(std::string_view text, const std::string& origin);
/// The same for a file of at most 256 MiB.
Json read_json(const std::filesystem::path& path);

/// A number that may be NaN or infinite, which JSON lacks: those are the strings "NaN", "Infinity"
/// and
/// "-Infinity", as in metrics.jsonl.
Json number_to_json(double value);
/// Throws dsv3::Error when `value` is neither a number nor one of the three strings.
double number_from_json(const Json& value);

}  // namespace dsv3
