// Sections that only the checker knows, and the place of every key of the core.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <dsv3/runtime/experiment.h>

namespace dsv3::config {

/// Keys at the top of an experiment that are not sections.
struct TopOptions {
  std::string name, output = "runs";
  static void describe(OptionSchema<TopOptions>& s);
};
struct HubOptions {
  std::string endpoint = "https://huggingface.co";
  static void describe(OptionSchema<HubOptions>& s);
};
struct LogOptions {
  std::string level = "info";
  static void describe(OptionSchema<LogOptions>& s);
};

/// Full paths of the core's options and slots called `key`, e.g. "train.steps".
std::vector<std::string> core_paths_of(const std::string& key);
/// Paths of the slots whose kind resembles the mistyped `key`; often none.
std::vector<std::string> slots_near(const std::string& key);

}  // namespace dsv3::config
