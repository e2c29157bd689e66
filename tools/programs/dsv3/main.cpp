// `dsv3`: commands for plugins, data, models and generation. `dsv3-run` trains.
#include <unistd.h>

#include <dsv3/runtime/crash.h>
#include <dsv3/runtime/trackers.h>

#include "commands.h"
#include "common/command_line.h"
#include "common/standard_streams.h"

namespace {

int run(int argc, char** argv) {
  const dsv3::CrashReports crash_reports;  // also names a mapped file that shrinks
  CLI::App app("Work with plugins, data and models for dsv3 experiments (to train, use dsv3-run)",
               "dsv3");
  app.require_subcommand(1);
  int exit_code = 0;
  add_plugins_commands(app, exit_code);
  add_model_commands(app, exit_code);
  add_generate_command(app, exit_code);
  add_eval_commands(app, exit_code);
  add_data_commands(app, exit_code);
  add_schema_commands(app, exit_code);
  add_reference_command(app, exit_code);
  add_compare_commands(app, exit_code);
  add_runs_commands(app, exit_code);
  add_report_commands(app, exit_code);
  add_sync_command(app, exit_code);
  add_completion_commands(app, exit_code);
  try {
    parse_command_line(app, argc, argv, "; to train, use dsv3-run FILE");
  } catch (const CLI::Success& e) {  // --help, --version
    return app.exit(e);
  }
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  const int code = run_program(argc, argv, run);
  if (dsv3::has_busy_trackers()) _exit(code);  // a tracker's thread still runs
  return code;
}
