// The subcommands of `dsv3`, with one source file per family.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <dsv3/runtime/plugins.h>

/// Each of these functions adds its subcommands to `app`. Their callbacks throw dsv3::Error, or set
/// `exit_code` if a command fails without an error message.
void add_plugins_commands(CLI::App& app, int& exit_code);
/// Adds `plugins check` to the command group `plugins`.
void add_plugins_check(CLI::App& group, int& exit_code);
void add_data_commands(CLI::App& app, int& exit_code);
/// Adds `plugins new` to the command group `plugins`.
void add_plugins_new(CLI::App& group);
void add_schema_commands(CLI::App& app, int& exit_code);
void add_reference_command(CLI::App& app, int& exit_code);
void add_compare_commands(CLI::App& app, int& exit_code);
void add_runs_commands(CLI::App& app, int& exit_code);
void add_report_commands(CLI::App& app, int& exit_code);
/// export, import, logits
void add_model_commands(CLI::App& app, int& exit_code);
void add_generate_command(CLI::App& app, int& exit_code);
/// eval
void add_eval_commands(CLI::App& app, int& exit_code);
void add_sync_command(CLI::App& app, int& exit_code);
/// Call this last, because completion scripts list the commands that `app` has at that time.
void add_completion_commands(CLI::App& app, int& exit_code);

/// Adds --plugin-path and --config to `command`, for every command that uses plugins. Their values
/// are set once the command line has been parsed.
class PluginOptions {
 public:
  void add_to(CLI::App& command);
  /// Returns the plugins found through --plugin-path, config.yaml, DSV3_PLUGIN_PATH and this build.
  dsv3::Plugins open() const { return dsv3::Plugins(levels()); }
  dsv3::SearchLevels levels() const;
  /// Returns the files with machine defaults.
  std::vector<dsv3::MachineFile> machine_files() const {
    return dsv3::machine_files(config_, {"."});
  }
  /// Returns the files that are read because of these options, and the files with machine defaults.
  std::vector<std::filesystem::path> files() const;

 private:
  std::vector<std::string> paths_;
  std::string config_;
};
