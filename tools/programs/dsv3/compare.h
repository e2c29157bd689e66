// The parts of `dsv3 compare`.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/config.h>
#include <dsv3/runtime/plugins.h>
#include <dsv3/support/json.h>

// What a run computes. A number is nullopt if it is unknown, such as without the tokenizer.
struct Costs {
  std::optional<double> parameters, active, flops_per_token;
  double tokens = 0;
};

// What a run has recorded of a metric.
struct Recorded {
  double last, best;  // best: the minimum, NaN if no value is finite
};

// An experiment file or run folder.
struct Item {
  std::string path;
  dsv3::Experiment experiment;
  Costs costs;
  std::map<std::string, Recorded> metrics;
  dsv3::Json provenance;
};

// Items that differ in nothing but the seed and settings that do not count as factors.
using Group = std::vector<const Item*>;

/// Loads experiment files and run folders. Throws dsv3::Error if one cannot be read.
std::vector<Item> load_items(const std::vector<std::string>& paths,
                             const std::vector<dsv3::MachineFile>& machine_files,
                             dsv3::Plugins& plugins);

/// Compares experiments and also what runs recorded about their data and history.
dsv3::Comparison comparison_of(const Item& a, const Item& b);
/// The plugins of which two runs used different builds.
std::vector<std::string> changed_plugins(const Item& a, const Item& b);

/// Returns the result in one of the formats "text", "markdown", "csv" and "json". CSV has one row
/// for each item, with its metrics and the settings that differ between groups.
std::string compared_as(const std::string& format, const std::vector<Group>& groups);
