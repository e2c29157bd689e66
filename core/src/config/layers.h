// The layers of an experiment: config.yaml, files named in `extends`, the experiment, settings of
// the program, the command line. Options that no layer sets have their defaults.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/runtime/config.h>

#include "config/diagnostics.h"
#include "config/node.h"

namespace dsv3::config {

/// What one source sets. Its trees are merged in order; a later one may depend on an earlier one.
struct Layer {
  std::string label;  ///< file name, "command line", "--debug" ...
  std::vector<Node> trees = {};
  bool is_file = false;
};

/// The layers of `request`, the lowest first. Throws ConfigError when a file or a key=value cannot
/// be read.
std::vector<Layer> read_layers(const ExperimentRequest& request, Diagnostics& diagnostics);

/// All layers merged into one tree. `notes` receives what the user may not expect.
Node merge_layers(std::vector<Layer> layers, Diagnostics& diagnostics, Catalog& catalog,
                  std::vector<std::string>& notes);

/// The tree of one `key=value`, which `source` holds. A value in brackets or braces is a YAML list
/// or map, one in quotes a YAML string; anything else is the text itself. nullopt = an error was
/// reported.
std::optional<Node> parse_setting(Diagnostics& diagnostics, int source);

/// Reads a YAML file as a map; errors go to `diagnostics`, and the result is then an empty map.
Node read_yaml_file(Diagnostics& diagnostics, const std::filesystem::path& file);

/// The largest YAML file in bytes.
constexpr size_t kMaxBytes = 1 << 20;

/// Parses the text of `source` from byte `begin` on, which must be on its first line. Reports bad
/// syntax, an exceeded limit, duplicate keys, `<<`, tags and several documents to `diagnostics`.
/// nullopt = the text yields no tree at all.
std::optional<Node> parse(Diagnostics& diagnostics, int source, size_t begin = 0);

}  // namespace dsv3::config
