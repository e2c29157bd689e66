// dsv3 compare A B ...
#include "compare.h"

#include <algorithm>
#include <fmt/format.h>
#include <iostream>
#include <memory>

#include "commands.h"

namespace {

struct CompareArguments {
  PluginOptions plugins;
  std::vector<std::string> paths;
  std::string format = "text";
  bool json = false;
};

// The digests of the plugin libraries with which a run was started, by name.
std::map<std::string, std::string> digests_of(const Item& item) {
  std::map<std::string, std::string> digests;
  for (const dsv3::Json& plugin : item.provenance.value("plugins", dsv3::Json::array()))
    digests[plugin.at("name")] = plugin.at("sha256");
  return digests;
}

// Whether both runs have recorded a hash of this name, and the hashes differ.
bool hashes_differ(const Item& a, const Item& b, const char* name) {
  const std::string before = a.provenance.value(name, ""), after = b.provenance.value(name, "");
  return !before.empty() && !after.empty() && before != after;
}

// From what a run started and how it was extended, as far as its experiment does not say so. Equal
// for runs that can be compared.
std::string history_of(const Item& item) {
  std::string text = "initial weights";
  if (const auto from = item.provenance.find("branched_from"); from != item.provenance.end())
    text = fmt::format("branch at step {}, checkpoint {:.12}", from->at("step").get<int64_t>(),
                       from->at("sha256").get<std::string>());
  if (item.provenance.contains("started_from"))
    text = fmt::format("other weights, {:.12}", item.provenance.value("init_hash", ""));
  for (const dsv3::Json& resume : item.provenance.value("resumes", dsv3::Json::array()))
    for (const dsv3::Json& change : resume.value("changes", dsv3::Json::array()))
      if (change.at("key") == "train.steps" || change.at("key") == "train.tokens")
        text += fmt::format(", extended at step {}", resume.at("step").get<int64_t>());
  return text;
}

std::vector<Group> groups_of(const std::vector<Item>& items) {
  std::vector<Group> groups;
  for (const Item& item : items) {
    const auto same = std::ranges::find_if(
        groups, [&](const Group& group) { return comparison_of(*group[0], item).factors.empty(); });
    if (same != groups.end())
      same->push_back(&item);
    else
      groups.push_back({&item});
  }
  return groups;
}

void compare(const CompareArguments& arguments) {
  dsv3::Plugins plugins = arguments.plugins.open();
  const std::vector<Item> items =
      load_items(arguments.paths, arguments.plugins.machine_files(), plugins);
  std::cout << compared_as(arguments.json ? "json" : arguments.format, groups_of(items));
}

}  // namespace

dsv3::Comparison comparison_of(const Item& a, const Item& b) {
  dsv3::Comparison comparison = dsv3::compare_experiments(a.experiment, b.experiment);
  const auto add = [&](const char* key, const std::string& left, const std::string& right) {
    comparison.differences.push_back({.key = key,
                                      .a = left,
                                      .b = right,
                                      .a_origin = "provenance.json",
                                      .b_origin = "provenance.json",
                                      .factor = key});
    comparison.factors.push_back(key);
  };
  if (history_of(a) != history_of(b)) add("history", history_of(a), history_of(b));
  const bool other_data = std::ranges::any_of(comparison.factors, [](const std::string& factor) {
    return factor.starts_with("data") || factor.starts_with("validation");
  });
  for (const char* hash : {"documents_hash", "validation_hash"})
    if (!other_data && hashes_differ(a, b, hash))
      add(hash, a.provenance[hash].get<std::string>().substr(0, 12),
          b.provenance[hash].get<std::string>().substr(0, 12));
  return comparison;
}

std::vector<std::string> changed_plugins(const Item& a, const Item& b) {
  const auto before = digests_of(a), after = digests_of(b);
  std::vector<std::string> changed;
  for (const auto& [name, digest] : after)
    if (const auto found = before.find(name); found != before.end() && found->second != digest)
      changed.push_back(name);
  return changed;
}

void add_compare_commands(CLI::App& app, int&) {
  const auto arguments = std::make_shared<CompareArguments>();
  CLI::App* command = app.add_subcommand(
      "compare",
      "Group experiments or runs by everything but their seeds, and show how the groups differ");
  command->add_option("experiment", arguments->paths, "Experiment files or run folders")
      ->required()
      ->expected(-2)  // at least 2
      ->type_name("PATH");
  command->add_option("--format", arguments->format, "How to print the result")
      ->check(CLI::IsMember({"text", "markdown", "csv", "json"}))
      ->capture_default_str();
  command->add_flag("--json", arguments->json, "Short for --format json")->excludes("--format");
  arguments->plugins.add_to(*command);
  command->callback([arguments] { compare(*arguments); });
}
