// The configuration layers of an experiment: config.yaml, the files in `extends`, the experiment
// file, settings made by the program, and the command line. Options that no layer sets keep their
// defaults.
#pragma once

#include <array>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <dsv3/runtime/config.h>

#include "config/diagnostics.h"
#include "config/node.h"

namespace dsv3::config {

/// The settings from one source. The trees must be merged in order, because a later one may depend
/// on an earlier one.
struct Layer {
  std::string label;  ///< file name, "command line", "--debug" ...
  std::vector<Node> trees = {};
  bool is_file = false;
};

/// Reads the configuration layers for `request`, lowest precedence first. Throws ConfigError if a
/// source cannot be read.
std::vector<Layer> read_layers(const ExperimentRequest& request, Diagnostics& diagnostics,
                               const Catalog& catalog);

/// Merges all layers into one tree. Adds a note to `notes` for each effect that users may not
/// expect.
Node merge_layers(std::vector<Layer> layers, Diagnostics& diagnostics, Catalog& catalog,
                  std::vector<std::string>& notes);

/// Keys of config.yaml that are addresses and credentials of this machine, and the environment
/// variables of the same meaning. They never become part of an experiment.
inline constexpr std::array<std::pair<const char*, const char*>, 6> kMachineSettings{
    {{"databricks_host", "DATABRICKS_HOST"},
     {"databricks_token", "DATABRICKS_TOKEN"},
     {"experiment_name", "MLFLOW_EXPERIMENT_NAME"},
     {"tracking_uri", "MLFLOW_TRACKING_URI"},
     {"unity_catalog", "DATABRICKS_UNITY_CATALOG"},
     {"workspace_id", "DATABRICKS_WORKSPACE_ID"}}};

/// Note on a setting that only a trusted file with machine defaults may contain.
constexpr const char* kTrustedFiles =
    "the file may have come with a model or a dataset; put this in ~/.config/dsv3/config.yaml, or "
    "pass the file with --config";

/// Parses the `key=value` in `source`. A value in brackets or braces is a YAML list or map, and a
/// value in quotes is a YAML string. Anything else is a plain string. Returns nullopt after
/// reporting an error.
std::optional<Node> parse_setting(Diagnostics& diagnostics, int source);

/// Reads a YAML file as a map. On error, reports it to `diagnostics` and returns an empty map.
Node read_yaml_file(Diagnostics& diagnostics, const std::filesystem::path& file);

/// Maximum size of a YAML file in bytes.
constexpr size_t kMaxBytes = 1 << 20;

/// Parses a registered source, starting at byte `begin` of its first line. Reports invalid syntax,
/// exceeded limits, duplicate keys, `<<`, tags and multiple documents to `diagnostics`. Returns
/// nullopt if no tree could be built.
std::optional<Node> parse(Diagnostics& diagnostics, int source, size_t begin = 0);

}  // namespace dsv3::config
