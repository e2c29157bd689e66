// Puts one layer of an experiment on top of those before it.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/config.h>

#include "config/diagnostics.h"
#include "config/node.h"

namespace dsv3::config {

class Merger {
 public:
  Merger(Diagnostics& diagnostics, Catalog& catalog, std::vector<std::string>& notes)
      : diagnostics_(diagnostics), catalog_(catalog), notes_(notes) {}

  /// Writes short forms out: `attention: mha` becomes {plugin: mha}, an alias the YAML it stands
  /// for.
  void expand(Node& layer);

  /// Maps merge, everything else replaces. A component whose plugin changes keeps its options,
  /// marked with the plugin they were written for; train.steps and train.tokens displace each
  /// other.
  void merge(Node& base, Node&& over) { merge(base, std::move(over), ""); }

 private:
  void expand_slot(Node& node, Kind kind, bool list);
  void expand_map(Node& node, Kind kind);
  std::optional<Node> alias(Kind kind, const Node& name);
  void merge(Node& base, Node&& over, const std::string& path);
  void merge_maps(Node& base, Node&& over, const std::string& path);
  void merge_into_list(Node& base, Node&& over, const std::string& path);
  void swap_plugin(Node& base, const Node& over, const std::string& path);
  void displace_length(Node& train, const Node& over);

  Diagnostics& diagnostics_;
  Catalog& catalog_;
  std::vector<std::string>& notes_;
};

}  // namespace dsv3::config
