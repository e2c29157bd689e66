// dsv3 sync RUN ... | --all
#include <iostream>
#include <memory>

#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/run_record.h>
#include <dsv3/runtime/sync.h>
#include <dsv3/runtime/trackers.h>
#include <dsv3/sdk/error.h>

#include "commands.h"

namespace {

struct SyncArguments {
  PluginOptions plugins;
  std::vector<std::string> runs;
  std::string output;
  bool all = false;
  double seconds = 600;
};

std::vector<std::filesystem::path> runs_of(const SyncArguments& a) {
  if (a.all == !a.runs.empty())
    throw dsv3::Error("pass the folders of runs, or --all for all runs in the output folder",
                      dsv3::ExitCode::usage);
  if (!a.all) return {a.runs.begin(), a.runs.end()};
  std::string output = a.output;
  if (output.empty()) output = dsv3::read_machine_config(a.plugins.machine_files()).output;
  if (output.empty()) output = "runs";
  std::error_code ignored;
  if (!std::filesystem::is_directory(output, ignored))
    throw dsv3::Error("output folder '" + output +
                          "' not found; pass the folder that contains your runs with --output",
                      dsv3::ExitCode::usage);
  return dsv3::find_runs(output);
}

const char* text_of(dsv3::Synced result) {
  switch (result) {
    case dsv3::Synced::no_tracker:
      return "the run has no tracker, so there is nowhere to send it";
    case dsv3::Synced::nothing_to_send:
      return "nothing to send";
    case dsv3::Synced::complete:
      return "everything sent";
    case dsv3::Synced::incomplete:
      return "not everything could be sent";
  }
  return "";
}

/// Returns the exit code.
int sync_all(const SyncArguments& a) {
  dsv3::Plugins plugins = a.plugins.open();
  const std::vector<dsv3::SettingsLayer> settings =
      dsv3::machine_settings(a.plugins.machine_files());
  int code = 0;
  for (const std::filesystem::path& run : runs_of(a)) {
    std::string text;
    try {
      const dsv3::Synced result = dsv3::sync_run(run, plugins, settings, a.seconds);
      if (result == dsv3::Synced::incomplete) code = 1;
      text = text_of(result);
    } catch (const dsv3::Error& error) {
      // A run that still trains sends by itself, and one damaged run must not stop the others.
      code = code ? code : int(error.code());
      text = std::string("error: ") + error.what();
    }
    std::cout << dsv3::printable_line(run.string()) << ": " << dsv3::printable_line(text)
              << std::endl;
  }
  return code;
}

}  // namespace

void add_sync_command(CLI::App& app, int& exit_code) {
  const auto a = std::make_shared<SyncArguments>();
  CLI::App* command =
      app.add_subcommand("sync", "Send to trackers what they have not received from ended runs");
  command->add_option("RUN", a->runs, "Run folders");
  command->add_flag("--all", a->all, "All runs in the output folder");
  command->add_option("--output", a->output, "With --all: parent folder of the run folders")
      ->type_name("DIR");
  command
      ->add_option("--timeout", a->seconds,
                   "Give up on a tracker after this many seconds; on one that never answers, "
                   "after 30")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.0, 1e6));
  a->plugins.add_to(*command);
  command->callback([a, &exit_code] { exit_code = sync_all(*a); });
}
