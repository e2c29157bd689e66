// Command line of `dsv3-run`, in a separate header because `dsv3 completion` also uses it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "common/command_line.h"

struct Arguments {
  std::vector<std::string> words;  // the experiment file and key=value settings
  std::string run_name, run_id, resume, from, branch, output, config, device, optimizer, strategy,
      gpu_memory;
  std::vector<std::string> plugin_paths, tags;
  std::optional<int64_t> num_gpus;
  int64_t max_restarts = 0;
  bool backtrace = false, profile = false, debug = false, dry_run = false, check = false,
       config_only = false, print_config = false, quiet = false;
};

inline void declare(CLI::App& app, Arguments& a) {
  app.add_option("FILE", a.words, "Experiment file, followed by key=value overrides")
      ->type_name("FILE key=value ...");
  app.add_flag(
      "--check", a.check,
      "Check everything that does not require training: configuration, components, paths, device");
  app.add_flag("--config-only", a.config_only,
               "With --check: do not look for data, tokenizer files or a GPU, which may be on a "
               "different machine");
  app.add_flag("--print-config", a.print_config,
               "Print the merged experiment with the origin of every value");
  app.add_flag("--dry-run", a.dry_run,
               "Estimate parameters, FLOPs, memory and time without writing anything");
  app.add_option(
         "--gpu-memory", a.gpu_memory,
         "With --dry-run: estimate whether and how the run fits into this much memory, e.g. 8G")
      ->type_name("SIZE");
  app.add_flag(
      "--debug", a.debug,
      "Train 50 steps on 4 x 256 synthetic tokens at a constant learning rate, without opening "
      "data or a tokenizer");
  app.add_option("--run_name", a.run_name, "Name of a new run")->type_name("NAME");
  app.add_option("--run_id", a.run_id, "Resume this run, named by its folder or by its MLflow id")
      ->type_name("RUN");
  app.add_option("--resume", a.resume,
                 "auto: resume the run given by --run_name if it exists, else start it")
      ->check(CLI::IsMember({"auto"}));
  app.add_option("--from", a.from, "Start a new run with the weights from this checkpoint or run")
      ->type_name("PATH");
  app.add_option("--branch", a.branch,
                 "Start a new run from the full state of a run, at its newest or the given step; "
                 "key=value changes its settings")
      ->type_name("RUN[@STEP]");
  app.add_option("--output", a.output, "Parent folder of the run folder")
      ->type_name("DIR")
      ->check([](const std::string& folder) {
        return std::string(folder.empty() ? "expected the name of a folder" : "");
      });
  app.add_option("--device", a.device, "Device to train on: auto, cpu or cuda")
      ->type_name("DEVICE");
  app.add_option("--optimizer", a.optimizer, "Same as optimizer=NAME")->type_name("NAME");
  app.add_option("--strategy", a.strategy, "Same as strategy=NAME")->type_name("NAME");
  app.add_option("--num_gpus", a.num_gpus,
                 "Train with this many processes on this machine: one for each GPU, or on the CPU")
      ->type_name("N")
      ->check(integer_between(1, 1024));
  app.add_option("--max_restarts", a.max_restarts,
                 "Resume the run up to this many times after a rank is lost or killed")
      ->type_name("N")
      ->check(integer_between(0, 1'000'000));
  app.add_option("--tag", a.tags, "Add a tag to the run: NAME=VALUE; may be repeated")
      ->type_name("NAME=VALUE")
      ->allow_extra_args(false)
      ->check([](const std::string& tag) {
        const size_t equals = tag.find('=');
        return std::string(equals == tag.npos || equals == 0 ? "expected NAME=VALUE" : "");
      });
  app.add_option("--plugin-path", a.plugin_paths,
                 "Plugin library, registry or installation to search first; may be repeated")
      ->type_name("PATH")
      ->allow_extra_args(false);
  app.add_option("--config", a.config, "File with machine defaults, instead of config.yaml")
      ->type_name("FILE");
  app.add_flag("--profile", a.profile,
               "Write a trace of a few steps of all ranks to the run folder, for ui.perfetto.dev");
  app.add_flag("--backtrace", a.backtrace, "Print a backtrace if the process crashes");
  app.add_flag("--quiet", a.quiet,
               "Print errors only: no progress, notes or warnings. log.txt in the run folder still "
               "contains them");
}
