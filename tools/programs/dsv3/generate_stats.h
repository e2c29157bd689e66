// Formats the statistics that `dsv3 generate --stats` prints.
#pragma once

#include <string>

#include <dsv3/runtime/generate.h>

/// Returns several lines of text, or one line of JSON.
std::string describe_stats(const dsv3::GenerateStats& stats, const dsv3::Model& model, bool json);
