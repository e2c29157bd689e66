// dsv3 plugins check
#include <filesystem>
#include <iostream>
#include <memory>

#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>

#include "commands.h"
#include "common/command_line.h"
#include "conformance/conformance.h"
#include "fake_device.h"

namespace {

namespace conformance = dsv3::conformance;

struct Arguments {
  PluginOptions plugins;
  std::string target;
  conformance::Request request;
  int64_t time_limit = 120;
  std::string device = "cpu";
  bool json = false;
};

// Finds the plugin library to check. The target is a library file, or KIND/NAME of a component in a
// registry.
void find_library(Arguments& arguments) {
  conformance::Request& request = arguments.request;
  request.time_limit = std::chrono::seconds(arguments.time_limit);
  request.levels = arguments.plugins.levels();
  request.library = arguments.target;
  if (std::filesystem::exists(arguments.target)) return;
  const size_t slash = arguments.target.find('/');
  const std::string name = arguments.target.substr(slash + 1);
  if (slash == 0 || slash == std::string::npos || name.find('/') != std::string::npos)
    throw dsv3::Error("file not found: " + arguments.target +
                          "; pass a plugin library, or a component as KIND/NAME",
                      dsv3::ExitCode::usage);
  const dsv3::Plugins plugins = arguments.plugins.open();
  const dsv3::Kind kind = dsv3::kind_from_name(arguments.target.substr(0, slash));
  const dsv3::PluginEntry* entry = plugins.find_entry(kind, name);
  if (!entry)
    throw dsv3::Error("component " + arguments.target + " not found in any registry; searched: " +
                          plugins.searched() + "; `dsv3 plugins list` lists all components",
                      dsv3::ExitCode::plugin);
  request.library = entry->library;
  request.component = arguments.target;
}

void print(const conformance::Result& result, std::string& shown) {
  if (result.component != shown) std::cout << result.component << '\n';
  shown = result.component;
  const std::string label = result.component.empty() ? "" : "  ";
  std::cout << label
            << (!result.kept    ? "FAIL  "
                : result.tested ? "ok    "
                                : "skip  ")
            << result.check
            << std::string(result.check.size() < 14 ? 14 - result.check.size() : 1, ' ')
            << result.promise << '\n';
  for (const std::string& note : result.notes)
    std::cout << label << "      note: " << dsv3::printable_line(note) << '\n';
  if (result.kept) return;
  std::string text = result.same_as.empty() ? result.text : "same error as " + result.same_as;
  for (size_t at = 0; (at = text.find('\n', at)) != std::string::npos; at += 9)
    text.replace(at, 1, "\n        ");
  std::cout << label << "      " << text << '\n' << std::flush;
}

int check(Arguments& arguments) {
  if (arguments.device == "fake") use_fake_device();
  arguments.request.gpu = arguments.device != "cpu";
  find_library(arguments);
  if (!arguments.json)
    std::cout << dsv3::printable_line(arguments.request.library.string()) << '\n';
  dsv3::Json list = dsv3::Json::array();
  std::string shown;
  int count = 0, untested = 0;
  const int broken =
      conformance::check_library(arguments.request, [&](const conformance::Result& result) {
        ++count;
        untested += !result.tested;
        if (arguments.json)
          list.push_back({{"component", result.component},
                          {"check", result.check},
                          {"promise", result.promise},
                          {"passed", result.kept && result.tested},
                          {"tested", result.tested},
                          {"text", result.text},
                          {"same_as", result.same_as},
                          {"notes", result.notes}});
        else
          print(result, shown);
      });
  if (arguments.json)
    std::cout << list.dump(2) << '\n';
  else
    std::cout << count - broken - untested << " of " << count << " checks passed"
              << (untested > 0 ? ", " + std::to_string(untested) + " not testable" : "") << '\n';
  return broken == 0 ? 0 : static_cast<int>(dsv3::ExitCode::plugin);
}

}  // namespace

void add_plugins_check(CLI::App& group, int& exit_code) {
  const auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      group.add_subcommand("check", "Run the conformance checks on a plugin's components");
  command
      ->add_option("plugin", arguments->target,
                   "Library (.so), or KIND/NAME of a registered component")
      ->required();
  arguments->plugins.add_to(*command);
  command
      ->add_option("--component", arguments->request.component,
                   "Check only this component of the library")
      ->type_name("KIND/NAME");
  command
      ->add_option("--set", arguments->request.options,
                   "Set an option of the component; may be repeated")
      ->type_name("OPTION=VALUE")
      ->allow_extra_args(false);
  command->add_option("--only", arguments->request.only, "Run only this check; may be repeated")
      ->type_name("CHECK")
      ->allow_extra_args(false);
  command
      ->add_option("--device", arguments->device,
                   "Device to compare with the CPU; `fake` is a CUDA device that needs no GPU")
      ->check(CLI::IsMember({"cpu", "cuda", "fake"}));
  command->add_option("--timeout", arguments->time_limit, "Time limit per check, in seconds")
      ->check(integer_between(1, 86400))
      ->type_name("S");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments, &exit_code] { exit_code = check(*arguments); });
}
