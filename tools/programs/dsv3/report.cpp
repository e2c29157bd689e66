// dsv3 report RUN...
#include <iostream>
#include <memory>

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/model.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/quantities.h>
#include <dsv3/runtime/report.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>

#include "commands.h"
#include "common/output_file.h"

namespace {

namespace stdfs = std::filesystem;

struct ReportArguments {
  PluginOptions plugins;
  std::vector<std::string> paths;
  std::string output = "report.html", title;
};

// The run folders among `paths` and, for a folder that contains runs, those inside it.
std::vector<stdfs::path> run_folders(const std::vector<std::string>& paths) {
  std::vector<stdfs::path> runs;
  for (const std::string& path : paths) {
    if (dsv3::is_run_folder(path)) {
      runs.push_back(path);
      continue;
    }
    const std::vector<stdfs::path> inside = dsv3::find_runs(path);
    if (inside.empty())
      throw dsv3::Error(path +
                            " is neither a run folder nor a folder that contains runs; pass a "
                            "folder such as runs/NAME or runs",
                        dsv3::ExitCode::usage);
    runs.insert(runs.end(), inside.begin(), inside.end());
  }
  return runs;
}

// Adds what the run's model computes, if its plugins and its tokenizer are available.
void add_figures(dsv3::ReportRun& run, dsv3::Plugins& plugins) {
  dsv3::ExperimentRequest request;
  request.file = run.record.path / "config.yaml";
  request.stored = true;
  try {
    const dsv3::ModelFigures figures =
        dsv3::figures(dsv3::load_experiment(request, plugins), plugins);
    run.parameters = double(figures.total);
    if (figures.flops_per_token > 0) run.flops_per_token = figures.flops_per_token;
  } catch (const std::exception&) {
    // The report then shows neither parameters nor FLOPs.
  }
}

void write_report(const ReportArguments& arguments) {
  const std::vector<stdfs::path> folders = run_folders(arguments.paths);
  const OutputFile output(arguments.output, folders);
  dsv3::Plugins plugins = arguments.plugins.open();
  std::vector<dsv3::ReportRun> runs;
  for (const stdfs::path& path : folders) {
    runs.push_back({dsv3::read_run(path, dsv3::ReadMetrics::all), {}, {}});
    for (const std::string& problem : runs.back().record.problems)
      dsv3::log::warning(path.string() + ": " + problem);
    add_figures(runs.back(), plugins);
  }
  dsv3::ReportOptions options;
  if (!arguments.title.empty())
    options.title = arguments.title;
  else if (runs.size() == 1)
    options.title = runs[0].record.name;
  const std::string html = dsv3::report_html(runs, options);
  output.write([&](const stdfs::path& file) { dsv3::fs::Writer(file).write(html); });
  if (!output.is_standard_output())
    std::cout << "wrote " << dsv3::printable_line(arguments.output) << " (" << runs.size()
              << (runs.size() == 1 ? " run, " : " runs, ")
              << dsv3::format_bytes(double(html.size())) << ")\n";
}

}  // namespace

void add_report_commands(CLI::App& app, int&) {
  const auto arguments = std::make_shared<ReportArguments>();
  CLI::App* command = app.add_subcommand(
      "report", "Write an HTML file with the curves, samples and settings of runs");
  command->add_option("run", arguments->paths, "Run folders, or folders that contain runs")
      ->required()
      ->expected(-1)
      ->type_name("PATH");
  command->add_option("--output", arguments->output, "HTML file to write")
      ->type_name("FILE")
      ->capture_default_str();
  command->add_option("--title", arguments->title, "Heading of the page");
  arguments->plugins.add_to(*command);
  command->callback([arguments] { write_report(*arguments); });
}
