// dsv3 plugins list | describe. `check` and `new` are in separate files.
#include <algorithm>
#include <array>
#include <filesystem>
#include <iostream>
#include <memory>

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>

#include "commands.h"

namespace {

// Whether a lookup by name finds this entry, rather than one with the same name in an earlier
// level.
bool wins(const dsv3::Plugins& plugins, const dsv3::PluginEntry& entry) {
  return plugins.find_entry(entry.kind, entry.name) == &entry;
}

dsv3::Json as_json(const dsv3::Plugins& plugins) {
  dsv3::Json list = dsv3::Json::array();
  for (const dsv3::PluginEntry& entry : plugins.entries()) {
    if (!wins(plugins, entry)) continue;
    list.push_back({{"kind", dsv3::kind_name(entry.kind)},
                    {"name", entry.name},
                    {"version", entry.version},
                    {"status", entry.status},
                    {"summary", entry.summary},
                    {"docs", entry.docs},
                    {"library", entry.library.string()},
                    {"registry", entry.registry.string()}});
  }
  return list;
}

void print_table(const dsv3::Plugins& plugins) {
  using Row = std::array<std::string, 4>;
  std::vector<Row> rows{{"component", "version", "status", "summary"}};
  for (const dsv3::PluginEntry& entry : plugins.entries())
    if (wins(plugins, entry))
      rows.push_back({dsv3::kind_name(entry.kind) + ("/" + entry.name), entry.version, entry.status,
                      entry.summary});
  for (Row& row : rows)
    for (std::string& cell : row) cell = dsv3::printable_line(cell);
  std::array<size_t, 4> width{};
  for (const Row& row : rows)
    for (size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  for (const Row& row : rows) {
    for (size_t i = 0; i + 1 < row.size(); ++i)
      std::cout << row[i] << std::string(width[i] - row[i].size() + 2, ' ');
    std::cout << row.back() << '\n';
  }
  for (const dsv3::Alias& alias : plugins.aliases())
    if (plugins.find_alias(alias.kind, alias.name) == &alias)
      std::cout << "\nshort form `" << dsv3::kind_name(alias.kind) << ": "
                << dsv3::printable_line(alias.name) << "` stands for\n"
                << alias.yaml;
}

void describe(const std::string& component, bool markdown, dsv3::Plugins& plugins) {
  const size_t slash = component.find('/');
  if (slash == std::string::npos)
    throw dsv3::Error(
        "invalid component '" + component + "'; expected KIND/NAME, e.g. attention/mla",
        dsv3::ExitCode::usage);
  dsv3::ComponentSpec spec;
  spec.kind = dsv3::kind_from_name(component.substr(0, slash));
  spec.plugin = component.substr(slash + 1);
  const dsv3::Registration& found = plugins.find(spec);
  if (markdown) {
    std::cout << dsv3::options_table(*found.schema, true);
    return;
  }
  const dsv3::PluginEntry& entry = *plugins.find_entry(spec.kind, spec.plugin);
  const auto line = [](const std::string& text) { return dsv3::printable_line(text); };
  std::cout << component << ' ' << line(entry.version) << " (" << line(entry.status)
            << "): " << line(found.summary) << "\nlibrary  " << line(entry.library.string())
            << "\nregistry " << line(entry.registry.string()) << '\n';
  if (!entry.docs.empty()) std::cout << "docs     " << line(entry.docs) << '\n';
  std::cout << '\n' << dsv3::options_table(*found.schema, false);
}

}  // namespace

void PluginOptions::add_to(CLI::App& command) {
  command
      .add_option("--plugin-path", paths_,
                  "Plugin library, registry file, folder of registries, or installation prefix to "
                  "search first")
      ->type_name("PATH")
      ->allow_extra_args(false);
  command.add_option("--config", config_, "File with machine defaults [config.yaml, if it exists]")
      ->type_name("FILE");
}

std::vector<std::filesystem::path> PluginOptions::files() const {
  std::vector<std::filesystem::path> files;
  for (const std::string& path : paths_)
    if (std::filesystem::is_regular_file(path)) files.emplace_back(path);
  for (const dsv3::MachineFile& file : machine_files()) files.push_back(file.path);
  return files;
}

dsv3::SearchLevels PluginOptions::levels() const {
  return dsv3::plugin_search_levels(paths_,
                                    dsv3::read_machine_config(machine_files()).plugin_paths);
}

void add_plugins_commands(CLI::App& app, int& exit_code) {
  struct Arguments {
    PluginOptions plugins;
    bool json = false, markdown = false;
    std::string component;
  };
  const auto arguments = std::make_shared<Arguments>();
  CLI::App* group = app.add_subcommand("plugins", "List, describe, check and create plugins");
  group->require_subcommand(1);

  CLI::App* list = group->add_subcommand("list", "List all components and their aliases");
  arguments->plugins.add_to(*list);
  list->add_flag("--json", arguments->json, "Print JSON");
  list->callback([arguments] {
    const dsv3::Plugins plugins = arguments->plugins.open();
    if (arguments->json)
      std::cout << as_json(plugins).dump(2) << '\n';
    else
      print_table(plugins);
  });

  CLI::App* one =
      group->add_subcommand("describe", "Show a component's options, read from its library");
  arguments->plugins.add_to(*one);
  one->add_option("component", arguments->component, "KIND/NAME, e.g. attention/mla")
      ->required()
      ->type_name("KIND/NAME");
  one->add_flag("--markdown", arguments->markdown, "Print only the option table, for a README");
  one->callback([arguments] {
    dsv3::Plugins plugins = arguments->plugins.open();
    describe(arguments->component, arguments->markdown, plugins);
  });

  add_plugins_check(*group, exit_code);
  add_plugins_new(*group);
}
