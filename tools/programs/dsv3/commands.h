// The subcommands of `dsv3`, each family in a file of its own.
#pragma once

#include <CLI/CLI.hpp>

#include <dsv3/runtime/plugins.h>

/// Each adds its subcommands to `app`; their callbacks throw dsv3::Error, and set `exit_code` where
/// a command fails without an error text.
void add_plugins_commands(CLI::App& app, int& exit_code);
/// The subcommand `check` of `dsv3 plugins`.
void add_plugins_check(CLI::App& group, int& exit_code);
void add_data_commands(CLI::App& app, int& exit_code);
/// `plugins new`, to the group of `plugins`.
void add_plugins_new(CLI::App& group);
void add_schema_commands(CLI::App& app, int& exit_code);
void add_compare_commands(CLI::App& app, int& exit_code);
/// export, import, logits
void add_model_commands(CLI::App& app, int& exit_code);
void add_generate_command(CLI::App& app, int& exit_code);
/// eval
void add_eval_commands(CLI::App& app, int& exit_code);
/// Last of all: completion is made from the commands that `app` has when it runs.
void add_completion_commands(CLI::App& app, int& exit_code);

/// Adds --plugin-path and --config, which every command that needs plugins takes, to `command`.
/// They are filled when the command line has been read.
class PluginOptions {
 public:
  void add_to(CLI::App& command);
  /// The plugins that those options, config.yaml, DSV3_PLUGIN_PATH and this build lead to.
  dsv3::Plugins open() const { return dsv3::Plugins(levels()); }
  dsv3::SearchLevels levels() const;
  /// The options as words, for another program.
  std::vector<std::string> words() const;
  /// --config, or config.yaml of the working folder; empty = neither.
  std::string config() const;

 private:
  std::vector<std::string> paths_;
  std::string config_;
};
