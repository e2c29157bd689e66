// Reads all layers of an experiment and merges them: config.yaml, files named in `extends`, the
// file itself, the command line, forced values.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include <dsv3/runtime/config.h>

#include "config/diagnostics.h"
#include "config/merge.h"
#include "config/node.h"

namespace dsv3::config {

class LayerReader {
 public:
  LayerReader(Diagnostics& diagnostics, Catalog& catalog, std::vector<std::string>& notes)
      : diagnostics_(diagnostics), merger_(diagnostics, catalog, notes) {}

  /// The merged tree; throws ConfigError at once when a text cannot be read.
  Node read(const ExperimentRequest& request);

 private:
  void add_machine_config(const std::filesystem::path& file);
  void add_file(const std::filesystem::path& file);
  void add_layer(Node&& layer, const std::filesystem::path& file);
  void add_bases(const Node& layer, const std::filesystem::path& file);
  void add_base(const Node& name, const std::filesystem::path& folder);
  void check_version(const Node& layer, bool required);
  void add_overrides(const std::vector<std::string>& overrides, const std::string& label);
  void add_override(const std::string& text, const std::string& label, int layer);
  void add(Node&& layer);

  Diagnostics& diagnostics_;
  Merger merger_;
  Node tree_;
  int layers_ = 0;
  size_t files_ = 0;
  std::vector<std::filesystem::path> open_;  // files whose bases are being read
};

/// Reads a YAML file as a map; mistakes go to `diagnostics`, and the result is then an empty map.
Node read_yaml_file(Diagnostics& diagnostics, const std::filesystem::path& file, int layer);
/// The same of a text that is kept in `file`.
Node read_yaml_text(Diagnostics& diagnostics, const std::filesystem::path& file, std::string text,
                    int layer);

}  // namespace dsv3::config
