// dsv3 schema
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>

#include <dsv3/runtime/json_schema.h>
#include <dsv3/support/fs.h>

#include "commands.h"

namespace {

struct SchemaArguments {
  PluginOptions plugins;
  std::string output;
  bool partial = false;
};

void print_schema(const SchemaArguments& arguments) {
  dsv3::Plugins plugins = arguments.plugins.open();
  const dsv3::JsonSchema result = dsv3::experiment_schema(plugins, arguments.partial);
  for (const std::string& plugin : result.skipped)
    std::cerr << "warning: cannot load " << plugin
              << "; the schema accepts any options for this plugin\n";
  const std::string text = result.schema.dump(2) + "\n";
  if (arguments.output.empty()) {
    std::cout << text;
    return;
  }
  const std::filesystem::path file = std::filesystem::absolute(arguments.output);
  dsv3::fs::make_folders(file.parent_path());
  dsv3::fs::write_atomically(file, text);
}

}  // namespace

void add_schema_commands(CLI::App& app, int&) {
  const auto arguments = std::make_shared<SchemaArguments>();
  CLI::App* schema = app.add_subcommand(
      "schema",
      "Print a JSON schema of experiment files for editors, with the options of all plugins");
  schema->add_option("--output", arguments->output, "File to write instead of standard output")
      ->type_name("FILE");
  schema->add_flag("--partial", arguments->partial,
                   "Make all keys optional, for base files that other experiments extend");
  arguments->plugins.add_to(*schema);
  schema->callback([arguments] { print_schema(*arguments); });
}
