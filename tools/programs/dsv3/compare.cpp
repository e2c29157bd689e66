// dsv3 compare A B
#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>

#include <dsv3/runtime/compare.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>

#include "commands.h"

namespace {

namespace stdfs = std::filesystem;

struct CompareArguments {
  PluginOptions plugins;
  std::string a, b;
  bool json = false;
};

// Returns an experiment from an experiment file, or the resolved experiment from a run folder.
dsv3::ExperimentRequest request_of(const std::string& what, const std::string& config) {
  dsv3::ExperimentRequest request;
  if (stdfs::is_directory(what)) {
    request.file = stdfs::path(what) / "config.yaml";
    if (!stdfs::exists(request.file))
      throw dsv3::Error(what +
                            " is not a run folder: it has no config.yaml; pass a run folder "
                            "such as runs/NAME, or an experiment file",
                        dsv3::ExitCode::usage);
  } else {
    request.file = what;
    request.machine_config = config;
  }
  return request;
}

// Returns the last line in a run's metrics.jsonl that contains `key`.
std::optional<double> last_metric(const std::string& run, const std::string& key) {
  std::ifstream file(stdfs::path(run) / "metrics.jsonl");
  std::optional<double> last;
  for (std::string line; std::getline(file, line);) {
    // The file's last line may be incomplete.
    const dsv3::Json row = dsv3::Json::parse(line, nullptr, false);
    if (row.is_object() && row.contains(key)) last = dsv3::number_from_json(row[key]);
  }
  return last;
}

struct MetricPair {
  std::string name;
  double a, b;
};

// Lists the metrics that both runs recorded.
std::vector<MetricPair> metrics_of(const CompareArguments& arguments) {
  std::vector<MetricPair> pairs;
  for (const char* name : {"val/loss", "train/loss", "step"}) {
    const auto a = last_metric(arguments.a, name), b = last_metric(arguments.b, name);
    if (a && b) pairs.push_back({name, *a, *b});
  }
  return pairs;
}

dsv3::Json as_json(const dsv3::Comparison& comparison, const std::vector<MetricPair>& metrics) {
  const auto side = [](const std::string& value, const std::string& origin) {
    return origin.empty() ? dsv3::Json(nullptr) : dsv3::Json{{"value", value}, {"origin", origin}};
  };
  dsv3::Json out{{"verdict", comparison.verdict()},
                 {"one_factor", comparison.factors.size() == 1},
                 {"factors", comparison.factors},
                 {"differences", dsv3::Json::array()},
                 {"metrics", dsv3::Json::object()}};
  for (const dsv3::Difference& d : comparison.differences)
    out["differences"].push_back(
        {{"key", d.key},
         {"a", side(d.a, d.a_origin)},
         {"b", side(d.b, d.b_origin)},
         {"factor", d.factor.empty() ? dsv3::Json() : dsv3::Json(d.factor)}});
  for (const MetricPair& m : metrics)
    out["metrics"][m.name] = {{"a", dsv3::number_to_json(m.a)}, {"b", dsv3::number_to_json(m.b)}};
  return out;
}

void print_rows(const std::vector<std::array<std::string, 5>>& rows) {
  std::array<size_t, 5> width{};
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i)
      line += row[i] + std::string(width[i] - row[i].size() + 2, ' ');
    line.erase(line.find_last_not_of(' ') + 1);
    std::cout << line << '\n';
  }
}

void print_table(const CompareArguments& arguments, const dsv3::Comparison& comparison,
                 const std::vector<MetricPair>& metrics) {
  std::cout << "A  " << arguments.a << "\nB  " << arguments.b << "\n\n";
  std::vector<std::array<std::string, 5>> rows{{"key", "A", "B", "origin of A", "origin of B"}};
  const auto shown = [](const std::string& text) { return text.empty() ? "-" : text; };
  for (const dsv3::Difference& d : comparison.differences)
    rows.push_back({(d.factor.empty() ? "(" + d.key + ")" : d.key), shown(d.a), shown(d.b),
                    shown(d.a_origin), shown(d.b_origin)});
  if (rows.size() > 1) {
    print_rows(rows);
    std::cout << '\n';
  }
  for (const MetricPair& m : metrics)
    std::cout << "last " << m.name << "  A " << m.a << "  B " << m.b << "  B - A " << m.b - m.a
              << '\n';
  std::cout << comparison.verdict() << '\n';
}

void compare(const CompareArguments& arguments) {
  dsv3::Plugins plugins = arguments.plugins.open();
  const std::string config = arguments.plugins.config();
  const auto load = [&](const std::string& what) {
    return dsv3::load_experiment(request_of(what, config), plugins);
  };
  const dsv3::Comparison comparison =
      dsv3::compare_experiments(load(arguments.a), load(arguments.b));
  const std::vector<MetricPair> metrics = metrics_of(arguments);
  if (arguments.json)
    std::cout << as_json(comparison, metrics).dump(2) << '\n';
  else
    print_table(arguments, comparison, metrics);
}

}  // namespace

void add_compare_commands(CLI::App& app, int&) {
  const auto arguments = std::make_shared<CompareArguments>();
  CLI::App* command = app.add_subcommand(
      "compare",
      "Show how two experiments or runs differ, and whether they differ in only one factor");
  command->add_option("A", arguments->a, "Experiment file or run folder")
      ->required()
      ->type_name("PATH");
  command->add_option("B", arguments->b, "Experiment file or run folder")
      ->required()
      ->type_name("PATH");
  command->add_flag("--json", arguments->json, "Print JSON");
  arguments->plugins.add_to(*command);
  command->callback([arguments] { compare(*arguments); });
}
