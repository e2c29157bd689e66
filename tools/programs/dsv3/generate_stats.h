// Formats the statistics that `dsv3 generate --stats` prints.
#pragma once

#include <string>

#include <dsv3/runtime/generate.h>
#include <dsv3/runtime/stored_model.h>

/// Returns several lines of text, or one line of JSON.
std::string describe_stats(const dsv3::GenerateStats& stats, const dsv3::LoadedModel& loaded,
                           const dsv3::ModelFactory& factory, bool json);
