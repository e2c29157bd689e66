// dsv3 schema
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include <dsv3/runtime/json_schema.h>
#include <dsv3/support/fs.h>

#include "commands.h"
#include "common/output_file.h"

namespace {

struct SchemaArguments {
  PluginOptions plugins;
  std::string output;
  bool partial = false;
};

void print_schema(const SchemaArguments& arguments, bool has_output) {
  std::optional<OutputFile> output;
  if (has_output) output.emplace(arguments.output, arguments.plugins.files());
  dsv3::Plugins plugins = arguments.plugins.open();
  const dsv3::JsonSchema result = dsv3::experiment_schema(plugins, arguments.partial);
  for (const std::string& plugin : result.skipped)
    std::cerr << "warning: cannot load " << plugin
              << "; the schema accepts any options for this plugin\n";
  const std::string text = result.schema.dump(2) + "\n";
  if (!output) {
    std::cout << text;
    return;
  }
  output->write([&](const std::filesystem::path& file) {
    dsv3::fs::Writer writer(file);
    writer.write(text);
    writer.sync();
    writer.close();
  });
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
  schema->callback([=] { print_schema(*arguments, schema->count("--output") > 0); });
}
