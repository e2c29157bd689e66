// `dsv3`: commands for plugins, data, models and generation. `dsv3-run` trains.
#include <csignal>
#include <exception>
#include <iostream>
#include <string>

#include <dsv3/runtime/logging.h>
#include <dsv3/sdk/error.h>

#include "commands.h"
#include "common/command_line.h"

namespace {

int fail(const char* what, dsv3::ExitCode exit_code) {
  std::cerr << dsv3::error_text(what) << '\n';
  return static_cast<int>(exit_code);
}

int run(int argc, char** argv) {
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
  // Lets a write beyond `ulimit -f` fail with an error instead of killing the process.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return run(argc, argv);
  } catch (const dsv3::Error& e) {
    return fail(e.what(), e.code());
  } catch (const std::exception& e) {
    return fail(e.what(), dsv3::ExitCode::failed);
  }
}
