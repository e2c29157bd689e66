// Merges one layer of an experiment into the layers below it.
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

  /// Expands short forms: `attention: mha` becomes {plugin: mha}, an alias the YAML it stands for.
  void expand(Node& layer);

  /// Maps merge, everything else replaces. A component whose plugin changes keeps its options,
  /// marked with the plugin they were written for; train.steps and train.tokens replace each other.
  void merge(Node& base, Node&& over) { merge(base, std::move(over), ""); }

  /// Turns a component list that was set element by element, {0: {...}, 1: {...}}, into a list.
  void finish(Node& root);

 private:
  void expand_slot(Node& node, Kind kind, bool list);
  void expand_map(Node& node, Kind kind);
  std::optional<Node> alias(Kind kind, const Node& name);
  void merge(Node& base, Node&& over, const std::string& path);
  void merge_maps(Node& base, Node&& over, const std::string& path);
  void merge_into_list(Node& base, Node&& over, const std::string& path);
  void change_plugin(Node& base, const Node& over, const std::string& path);
  void replace_length(Node& train, const Node& over);

  Diagnostics& diagnostics_;
  Catalog& catalog_;
  std::vector<std::string>& notes_;
};

}  // namespace dsv3::config
