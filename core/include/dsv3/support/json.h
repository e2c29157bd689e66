// JSON with limits and errors that say where.
#pragma once

#include <nlohmann/json.hpp>

#include <filesystem>
#include <string>
#include <string_view>

namespace dsv3 {

using Json = nlohmann::json;

/// Parses `text`; throws dsv3::Error "<origin>:line:col: ..." on bad JSON, on nesting deeper than 64 and on
/// duplicate keys.
Json parse_json(std::string_view text, const std::string& origin);
Json read_json(const std::filesystem::path& path);

}  // namespace dsv3
