// dsv3 compare A B ...
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <optional>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/model.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/quantities.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/trainer.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/json.h>

#include "commands.h"

namespace {

namespace stdfs = std::filesystem;

struct CompareArguments {
  PluginOptions plugins;
  std::vector<std::string> paths;
  bool json = false;
};

// What a run computes. A number is nullopt if it is unknown, such as without the tokenizer.
struct Costs {
  std::optional<double> parameters, active, flops_per_token;
  double tokens = 0;
};

// An experiment file or run folder.
struct Item {
  std::string path;
  dsv3::Experiment experiment;
  Costs costs;
  std::map<std::string, double> metrics;  // the last value of each
  dsv3::Json provenance;
};

// Items that differ in nothing but the seed and settings that do not count as factors.
using Group = std::vector<const Item*>;

// Returns an experiment from an experiment file, or the resolved experiment from a run folder.
dsv3::ExperimentRequest request_of(const std::string& what,
                                   const std::vector<dsv3::MachineFile>& machine_files) {
  dsv3::ExperimentRequest request;
  if (stdfs::is_directory(what)) {
    request.file = stdfs::path(what) / "config.yaml";
    request.stored = true;
    if (!stdfs::exists(request.file))
      throw dsv3::Error(what +
                            " is not a run folder: it has no config.yaml; pass a run folder "
                            "such as runs/NAME, or an experiment file",
                        dsv3::ExitCode::usage);
  } else {
    request.file = what;
    request.machine_files = machine_files;
  }
  return request;
}

dsv3::Experiment load(const std::string& what, const std::vector<dsv3::MachineFile>& machine_files,
                      dsv3::Plugins& plugins) {
  try {
    return dsv3::load_experiment(request_of(what, machine_files), plugins);
  } catch (const dsv3::Error& error) {
    throw dsv3::Error(
        error.what() + (stdfs::is_directory(what) ? dsv3::plugin_advice(what) : std::string()),
        error.code());
  }
}

// The last step of a run that has finished, according to its status.json; else -1.
double finished_at(const std::string& run) {
  const stdfs::path path = stdfs::path(run) / "status.json";
  if (!stdfs::is_regular_file(path)) return -1;
  const dsv3::Json status = dsv3::read_json(path);
  const bool finished = status.is_object() && status.value("state", "") == "finished";
  return finished ? status.value("step", -1.0) : -1;
}

[[noreturn]] void fail_metrics(const stdfs::path& file, int64_t line, const std::string& what) {
  throw dsv3::Error(file.string() + ":" + std::to_string(line) + ": " + what +
                    "; remove the line, or restore the file from a copy");
}

// Returns the last value of each metric that a run has recorded; empty for an experiment file.
std::map<std::string, double> last_metrics(const std::string& run) {
  std::map<std::string, double> last;
  const stdfs::path path = stdfs::path(run) / "metrics.jsonl";
  if (!stdfs::is_directory(run)) return last;
  if (!stdfs::exists(path)) {
    dsv3::log::warning(path.string() + " is missing, so the run's metrics are unknown");
    return last;
  }
  if (!stdfs::is_regular_file(path))
    throw dsv3::Error(path.string() + " is not a regular file", dsv3::ExitCode::usage);
  std::ifstream file(path);
  if (!file) throw dsv3::Error("cannot read " + path.string() + ": " + std::strerror(errno));
  int64_t number = 0, invalid = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    // The last line may be incomplete, because the run may be writing it.
    if (invalid > 0) fail_metrics(path, invalid, "not a line of metrics");
    const dsv3::Json row = dsv3::Json::parse(line, nullptr, false);
    if (!row.is_object() || !row.contains("step")) {
      invalid = number;
      continue;
    }
    const double before = last.contains("step") ? last["step"] : -1;
    for (auto it = row.begin(); it != row.end(); ++it)
      last[it.key()] = dsv3::number_from_json(it.value());
    if (last["step"] < before) fail_metrics(path, number, "the steps are not in order");
  }
  if (last.empty())
    dsv3::log::warning(path.string() + " is empty, so the run's metrics are unknown");
  else if (last["step"] < finished_at(run))
    dsv3::log::warning(fmt::format("{} ends at step {}, but the run finished at step {}",
                                   path.string(), last["step"], finished_at(run)));
  return last;
}

Costs costs_of(const dsv3::Experiment& experiment, dsv3::Plugins& plugins) {
  Costs costs;
  const auto& train = experiment.train;
  costs.tokens = double(dsv3::total_steps(experiment) * train.batch * train.sequence);
  try {
    const dsv3::ModelFigures figures = dsv3::figures(experiment, plugins);
    costs.parameters = double(figures.total);
    costs.active = figures.active;
    if (figures.flops_per_token > 0) costs.flops_per_token = figures.flops_per_token;
  } catch (const dsv3::Error&) {
    // The tokenizer of a run may be on another machine.
  }
  return costs;
}

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

// Compares experiments and also what runs recorded about their data and history.
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

// The plugins of which two runs used different builds.
std::vector<std::string> changed_plugins(const Item& a, const Item& b) {
  const auto before = digests_of(a), after = digests_of(b);
  std::vector<std::string> changed;
  for (const auto& [name, digest] : after)
    if (const auto found = before.find(name); found != before.end() && found->second != digest)
      changed.push_back(name);
  return changed;
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

// "A" to "Z", then "A1" to "Z1" and so on.
std::string letter(size_t index) {
  return std::string(1, char('A' + index % 26)) + (index < 26 ? "" : std::to_string(index / 26));
}

// The values of a metric that the group's runs recorded last.
std::vector<double> metric_of(const Group& group, const std::string& name) {
  std::vector<double> values;
  for (const Item* item : group)
    if (const auto metric = item->metrics.find(name); metric != item->metrics.end())
      values.push_back(metric->second);
  return values;
}

// The mean and the sample standard deviation, which is NaN for a single value.
std::pair<double, double> statistics(const std::vector<double>& values) {
  double sum = 0, squares = 0;
  for (const double value : values) sum += value;
  const double mean = sum / double(values.size());
  for (const double value : values) squares += (value - mean) * (value - mean);
  return {mean, std::sqrt(squares / double(values.size() - 1))};
}

std::string statistics_text(const std::vector<double>& values, size_t runs) {
  if (values.empty()) return "-";
  const auto [mean, deviation] = statistics(values);
  const std::string text = values.size() == 1 ? fmt::format("{:.5g}", mean)
                                              : fmt::format("{:.5g} +- {:.2g}", mean, deviation);
  return values.size() == runs ? text : text + fmt::format(" ({} of {} runs)", values.size(), runs);
}

constexpr std::array kMetrics{"val/loss", "train/loss", "step"};

dsv3::Json as_json(const Item& first, const Item& other) {
  const dsv3::Comparison comparison = comparison_of(first, other);
  const auto side = [](const std::string& value, const std::string& origin) {
    return origin.empty() ? dsv3::Json(nullptr) : dsv3::Json{{"value", value}, {"origin", origin}};
  };
  dsv3::Json out{{"verdict", comparison.verdict()},
                 {"one_factor", comparison.factors.size() == 1},
                 {"factors", comparison.factors},
                 {"changed_plugins", changed_plugins(first, other)},
                 {"differences", dsv3::Json::array()}};
  for (const dsv3::Difference& d : comparison.differences)
    out["differences"].push_back(
        {{"key", d.key},
         {"a", side(d.a, d.a_origin)},
         {"b", side(d.b, d.b_origin)},
         {"factor", d.factor.empty() ? dsv3::Json() : dsv3::Json(d.factor)}});
  return out;
}

dsv3::Json as_json(const Group& group) {
  const auto known = [](const std::optional<double>& value) {
    return value ? dsv3::Json(*value) : dsv3::Json();
  };
  const Costs& costs = group[0]->costs;
  dsv3::Json out{{"items", dsv3::Json::array()},
                 {"seeds", dsv3::Json::array()},
                 {"parameters", known(costs.parameters)},
                 {"active_parameters", known(costs.active)},
                 {"flops_per_token", known(costs.flops_per_token)},
                 {"tokens", costs.tokens},
                 {"metrics", dsv3::Json::object()}};
  for (const Item* item : group) {
    out["items"].push_back(item->path);
    out["seeds"].push_back(item->experiment.train.seed);
  }
  for (const char* name : kMetrics)
    if (const std::vector<double> values = metric_of(group, name); !values.empty()) {
      const auto [mean, deviation] = statistics(values);
      out["metrics"][name] = {{"mean", dsv3::number_to_json(mean)}, {"count", values.size()}};
      if (values.size() > 1) out["metrics"][name]["sd"] = dsv3::number_to_json(deviation);
    }
  return out;
}

using Row = std::vector<std::string>;

void print_rows(std::vector<Row> rows) {
  for (Row& row : rows)
    for (std::string& cell : row) cell = dsv3::printable_line(cell);
  std::vector<size_t> width(rows[0].size());
  for (const Row& row : rows)
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  for (const Row& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i)
      line += row[i] + std::string(width[i] - row[i].size() + 2, ' ');
    line.erase(line.find_last_not_of(' ') + 1);
    std::cout << line << '\n';
  }
}

// Prints what each group costs and reached.
void print_groups(const std::vector<Group>& groups) {
  const auto count = [](const std::optional<double>& value) {
    return value ? dsv3::format_count(*value) : "unknown";
  };
  std::vector<Row> rows{{"", "seeds", "parameters", "active", "FLOPs/token", "tokens"}};
  for (size_t i = 0; i < groups.size(); ++i) {
    const Costs& costs = groups[i][0]->costs;
    std::string seeds;
    for (const Item* item : groups[i])
      seeds += (seeds.empty() ? "" : ", ") + std::to_string(item->experiment.train.seed);
    const auto flops = costs.flops_per_token;
    rows.push_back({letter(i), seeds, count(costs.parameters), count(costs.active),
                    flops ? dsv3::format_flops(*flops) : "unknown",
                    dsv3::format_count(costs.tokens)});
  }
  for (const char* name : kMetrics) {
    const auto recorded = [&](const Group& group) { return !metric_of(group, name).empty(); };
    if (std::ranges::none_of(groups, recorded)) continue;
    rows[0].push_back(std::string("last ") + name);
    for (size_t i = 0; i < groups.size(); ++i)
      rows[i + 1].push_back(statistics_text(metric_of(groups[i], name), groups[i].size()));
  }
  print_rows(rows);
  std::cout << '\n';
}

void print_differences(const dsv3::Comparison& comparison, const std::string& a,
                       const std::string& b) {
  std::vector<Row> rows{{"key", a, b, "origin of " + a, "origin of " + b}};
  const auto shown = [](const std::string& text) { return text.empty() ? "-" : text; };
  for (const dsv3::Difference& d : comparison.differences)
    rows.push_back({(d.factor.empty() ? "(" + d.key + ")" : d.key), shown(d.a), shown(d.b),
                    shown(d.a_origin), shown(d.b_origin)});
  if (rows.size() == 1) return;
  print_rows(rows);
  std::cout << '\n';
}

// The items that are compared with the first one: the first of each other group or, if there is
// only one group, its last item.
std::vector<const Item*> others(const std::vector<Group>& groups) {
  if (groups.size() == 1) return {groups[0].back()};
  std::vector<const Item*> items;
  for (size_t i = 1; i < groups.size(); ++i) items.push_back(groups[i][0]);
  return items;
}

void print_all(const std::vector<Group>& groups) {
  for (size_t i = 0; i < groups.size(); ++i)
    for (const Item* item : groups[i])
      std::cout << letter(i) << "  " << dsv3::printable_line(item->path) << '\n';
  std::cout << '\n';
  print_groups(groups);
  const Item& first = *groups[0][0];
  const std::vector<const Item*> compared = others(groups);
  for (size_t i = 0; i < compared.size(); ++i) {
    const dsv3::Comparison comparison = comparison_of(first, *compared[i]);
    const std::string name = groups.size() == 1 ? "last" : letter(i + 1);
    print_differences(comparison, groups.size() == 1 ? "first" : "A", name);
    std::cout << (compared.size() == 1 ? "" : "A and " + name + ": ")
              << dsv3::printable_line(comparison.verdict()) << '\n';
  }
  for (const Group& group : groups)
    for (const Item* item : group)
      for (const std::string& plugin : changed_plugins(first, *item))
        std::cout << dsv3::printable_line("note: " + first.path + " and " + item->path +
                                          " used different builds of plugin '" + plugin + "'")
                  << '\n';
}

void print_json(const std::vector<Group>& groups) {
  dsv3::Json out{{"groups", dsv3::Json::array()}, {"comparisons", dsv3::Json::array()}};
  for (const Group& group : groups) out["groups"].push_back(as_json(group));
  for (const Item* other : others(groups))
    out["comparisons"].push_back(as_json(*groups[0][0], *other));
  std::cout << out.dump(2, ' ', false, dsv3::Json::error_handler_t::replace) << '\n';
}

void compare(const CompareArguments& arguments) {
  dsv3::Plugins plugins = arguments.plugins.open();
  const std::vector<dsv3::MachineFile> machine_files = arguments.plugins.machine_files();
  std::vector<Item> items;
  for (const std::string& path : arguments.paths) {
    dsv3::Experiment experiment = load(path, machine_files, plugins);
    const Costs costs = costs_of(experiment, plugins);
    items.push_back(
        {path, std::move(experiment), costs, last_metrics(path), dsv3::read_provenance(path)});
  }
  const std::vector<Group> groups = groups_of(items);
  if (arguments.json)
    print_json(groups);
  else
    print_all(groups);
}

}  // namespace

void add_compare_commands(CLI::App& app, int&) {
  const auto arguments = std::make_shared<CompareArguments>();
  CLI::App* command = app.add_subcommand(
      "compare",
      "Group experiments or runs by everything but their seeds, and show how the groups differ");
  command->add_option("experiment", arguments->paths, "Experiment files or run folders")
      ->required()
      ->expected(-2)  // at least 2
      ->type_name("PATH");
  command->add_flag("--json", arguments->json, "Print JSON");
  arguments->plugins.add_to(*command);
  command->callback([arguments] { compare(*arguments); });
}
