// The command line of `dsv3-run`; apart from main, so that `dsv3 completion` sees it, too.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

struct Arguments {
  std::vector<std::string> words;  // the experiment file and key=value overrides
  std::string run_name, run_id, resume, from, output, config, device, optimizer, strategy,
      gpu_memory;
  std::vector<std::string> plugin_paths;
  bool debug = false, dry_run = false, check = false, print_config = false, quiet = false;
};

inline void declare(CLI::App& app, Arguments& a) {
  app.add_option("FILE", a.words, "experiment file, then key=value overrides")
      ->type_name("FILE key=value ...");
  app.add_flag("--check", a.check, "check the experiment and stop");
  app.add_flag("--print-config", a.print_config,
               "print the merged experiment with the origin of every value");
  app.add_flag("--dry-run", a.dry_run, "print parameters, FLOPs, memory and time; write nothing");
  app.add_option("--gpu_memory", a.gpu_memory,
                 "with --dry-run: say whether and how it fits, e.g. 8G");
  app.add_flag("--debug", a.debug,
               "50 steps of 4 x 256 made tokens: tries everything but the data");
  app.add_option("--run_name", a.run_name, "name of a new run");
  app.add_option("--run_id", a.run_id, "go on with this run");
  app.add_option("--resume", a.resume,
                 "auto: with --run_name, go on if the run is there, else start it")
      ->check(CLI::IsMember({"auto"}));
  app.add_option("--from", a.from, "start a new run with the weights of this checkpoint or run")
      ->type_name("PATH");
  app.add_option("--output", a.output, "where run folders go")->type_name("DIR");
  app.add_option("--device", a.device, "auto, cpu or cuda");
  app.add_option("--optimizer", a.optimizer, "the same as optimizer=NAME");
  app.add_option("--strategy", a.strategy, "the same as strategy=NAME");
  app.add_option("--plugin-path", a.plugin_paths,
                 "registry or installation searched first; may be repeated")
      ->type_name("PATH")
      ->allow_extra_args(false);
  app.add_option("--config", a.config, "machine defaults instead of config.yaml")
      ->type_name("FILE");
  app.add_flag("--quiet", a.quiet, "no progress display");
}
