// Options of the sections that only the checker reads, and the paths of core keys and components.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <dsv3/runtime/experiment.h>

namespace dsv3::config {

/// Top-level keys of an experiment that are not sections.
struct TopOptions {
  std::string name, output = "runs";
  static void describe(OptionSchema<TopOptions>& s);
};
/// The keys of a strategy that the core reads.
struct StrategyOptions {
  double timeout = 600;
  static void describe(OptionSchema<StrategyOptions>& s);
};
struct HubOptions {
  std::string endpoint = "https://huggingface.co";
  static void describe(OptionSchema<HubOptions>& s);
};
struct LogOptions {
  std::string level = "info";
  double system_interval = 10;
  static void describe(OptionSchema<LogOptions>& s);
};

/// Full paths of the core options and components whose last key is `key`, e.g. "train.steps" for
/// "steps".
std::vector<std::string> core_paths_of(const std::string& key);
/// Paths of the components whose kind has a name similar to the mistyped `key`; often none.
std::vector<std::string> slots_near(const std::string& key);

/// A component slot: a component kind and its path in an experiment, e.g. "model.attention".
using Slot = KindRow;

/// All slots. A slot inside another component comes after that component's slot.
std::span<const Slot> slots();

/// The slot at `path`, or the slot whose list contains the element at `path` ("optimizer.0");
/// nullptr = none.
const Slot* slot_at(std::string_view path);

/// Keys of the components in `section`, e.g. "attention" and "position" in "model".
std::vector<std::string> slot_keys(std::string_view section);

/// Keys that the core itself reads from a component's map, in addition to the plugin's options:
/// "plugin", "library" ...
std::vector<std::string> core_keys(Kind kind);

}  // namespace dsv3::config
