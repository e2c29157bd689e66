// dsv3 runs [FOLDER]
#include <array>
#include <cmath>
#include <fmt/format.h>
#include <iostream>
#include <memory>
#include <sys/ioctl.h>
#include <thread>
#include <unistd.h>

#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/quantities.h>
#include <dsv3/runtime/run_record.h>
#include <dsv3/sdk/error.h>

#include "commands.h"
#include "common/command_line.h"
#include "common/standard_streams.h"
#include "common/table.h"
#include "run_filter.h"

namespace {

using dsv3::RunRecord;

struct RunsArguments {
  std::string folder, sort = "-started", config;
  std::vector<std::string> filters;
  std::optional<double> watch;
  bool json = false;
};

std::string number(double value) {
  return std::isnan(value) ? "-" : fmt::format("{:.4f}", value);
}

std::string metric(const RunRecord& run, const char* name) {
  const auto found = run.metrics.by_name.find(name);
  if (found == run.metrics.by_name.end() || found->second.y.empty()) return "-";
  const double value = found->second.y.back();
  return std::isfinite(value) ? number(value) : dsv3::number_to_json(value).get<std::string>();
}

std::string seconds(double value) {
  return std::isnan(value) ? "-" : dsv3::format_duration(std::max(0.0, value));
}

std::string age_of(const RunRecord& run) {
  const double now = double(std::time(nullptr));
  return seconds(now - run.started);
}

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

// What is wrong with a run: damaged files, otherwise the error with which it ended.
std::string note_of(const RunRecord& run) {
  std::string text;
  for (const std::string& problem : run.problems) text += (text.empty() ? "" : "; ") + problem;
  return text.empty() ? first_line(run.message) : text;
}

// A column of the table. Where the terminal is narrow, columns with the largest rank are dropped.
struct Column {
  const char* title;
  int rank;
  std::string (*cell)(const RunRecord&);
};

const std::array kColumns{
    Column{"name", 0, [](const RunRecord& run) { return run.name; }},
    Column{"state", 0, [](const RunRecord& run) { return run.state; }},
    Column{"step", 1,
           [](const RunRecord& run) {
             return run.steps > 0 ? fmt::format("{}/{}", run.step, run.steps)
                                  : std::to_string(run.step);
           }},
    Column{
        "tokens", 5,
        [](const RunRecord& run) { return run.tokens > 0 ? dsv3::format_count(run.tokens) : "-"; }},
    Column{"train/loss", 1, [](const RunRecord& run) { return metric(run, "train/loss"); }},
    Column{"val/loss", 2, [](const RunRecord& run) { return metric(run, "val/loss"); }},
    Column{"age", 3, age_of},
    Column{"duration", 4, [](const RunRecord& run) { return seconds(run.duration); }},
    Column{"tokens/s", 6,
           [](const RunRecord& run) {
             const double rate = run.metrics.last("throughput/tokens_per_s");
             return rate > 0 ? dsv3::format_count(rate) : "-";
           }},
    Column{"experiment", 7,
           [](const RunRecord& run) { return run.experiment.empty() ? "-" : run.experiment; }},
};

constexpr size_t kNoteWidth = 20;

// The columns that fit into `width`, next to a note if there is one.
std::vector<Row> fitting(const std::vector<RunRecord>& runs, bool with_notes, size_t width) {
  for (int rank = 9;; --rank) {
    std::vector<Row> rows(1);
    for (const Column& column : kColumns)
      if (column.rank < rank) rows[0].push_back(column.title);
    for (const RunRecord& run : runs) {
      rows.emplace_back();
      for (const Column& column : kColumns)
        if (column.rank < rank) rows.back().push_back(dsv3::printable_line(column.cell(run)));
    }
    size_t total = with_notes ? kNoteWidth + 2 : 0;
    for (size_t i = 0; i < rows[0].size(); ++i) {
      size_t widest = 0;
      for (const Row& row : rows) widest = std::max(widest, width_of(row[i]));
      total += widest + 2;
    }
    if (total <= width + 2 || rank == 1) return rows;
  }
}

std::string table_of(const std::vector<RunRecord>& runs, size_t width) {
  const bool with_notes =
      std::ranges::any_of(runs, [](const RunRecord& run) { return !note_of(run).empty(); });
  std::vector<Row> rows = fitting(runs, with_notes, width);
  if (with_notes) {
    rows[0].push_back("note");
    for (size_t i = 0; i < runs.size(); ++i) rows[i + 1].push_back(note_of(runs[i]));
  }
  std::string text, table = text_table(rows);
  for (size_t begin = 0, end; (end = table.find('\n', begin)) != table.npos; begin = end + 1)
    text += cut_to(table.substr(begin, end - begin), width) + "\n";
  return text;
}

dsv3::Json as_json(const RunRecord& run) {
  const auto known = [](double value) {
    return std::isnan(value) ? dsv3::Json() : dsv3::Json(value);
  };
  dsv3::Json out{{"name", run.name},
                 {"path", run.path.string()},
                 {"experiment", run.experiment},
                 {"state", run.state},
                 {"message", run.message},
                 {"step", run.step},
                 {"steps", run.steps > 0 ? dsv3::Json(run.steps) : dsv3::Json()},
                 {"tokens", run.tokens},
                 {"started", known(run.started)},
                 {"updated", known(run.updated)},
                 {"duration", known(run.duration)},
                 {"metrics", dsv3::Json::object()},
                 {"problems", run.problems}};
  for (const auto& [name, series] : run.metrics.by_name)
    if (!series.y.empty()) out["metrics"][name] = dsv3::number_to_json(series.y.back());
  return out;
}

std::vector<RunRecord> selected_runs(const RunsArguments& arguments, const std::string& folder) {
  std::vector<RunFilter> filters(arguments.filters.begin(), arguments.filters.end());
  std::vector<RunRecord> runs;
  for (const std::filesystem::path& path : dsv3::find_runs(folder))
    runs.push_back(dsv3::read_run(path, dsv3::ReadMetrics::last));
  for (const RunFilter& filter : filters) require_known(runs, filter.key());
  sort_runs(runs, arguments.sort);
  std::erase_if(runs, [&](const RunRecord& run) {
    return !std::ranges::all_of(filters,
                                [&](const RunFilter& filter) { return filter.accepts(run); });
  });
  return runs;
}

std::string page_of(const RunsArguments& arguments, const std::string& folder, size_t width) {
  const std::vector<RunRecord> runs = selected_runs(arguments, folder);
  if (!runs.empty()) return table_of(runs, width);
  return dsv3::printable_line("no runs in " + folder +
                              (arguments.filters.empty() ? "" : " satisfy every --filter")) +
         "\n";
}

struct Screen {
  size_t columns = 1'000'000, rows = 1'000'000;  // of a file or pipe, which is never full
};

Screen screen() {
  winsize size{};
  if (!::isatty(STDOUT_FILENO)) return {};
  const bool known = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? Screen{size.ws_col, size.ws_row} : Screen{80, 24};
}

// Redraws the table until the user stops the program.
[[noreturn]] void watch(const RunsArguments& arguments, const std::string& folder) {
  set_output(Output::raw);  // the table is printable, and what moves the cursor must stay
  std::cout << "\x1b[2J";
  for (;;) {
    const Screen size = screen();
    const std::string page = page_of(arguments, folder, size.columns);
    std::string shown = "\x1b[H";
    size_t rows = 0, begin = 0;
    for (size_t end; rows + 1 < size.rows && (end = page.find('\n', begin)) != page.npos;
         begin = end + 1, ++rows)
      shown += page.substr(begin, end - begin) + "\x1b[K\n";
    std::cout << shown << "\x1b[J" << std::flush;
    std::this_thread::sleep_for(std::chrono::duration<double>(*arguments.watch));
  }
}

void list_runs(const RunsArguments& arguments) {
  std::string folder = arguments.folder;
  if (folder.empty())
    folder = dsv3::read_machine_config(dsv3::machine_files(arguments.config, {"."})).output;
  if (folder.empty()) folder = "runs";
  if (arguments.json) {
    dsv3::Json out = dsv3::Json::array();
    for (const RunRecord& run : selected_runs(arguments, folder)) out.push_back(as_json(run));
    std::cout << out.dump(2, ' ', false, dsv3::Json::error_handler_t::replace) << '\n';
  } else if (arguments.watch) {
    if (!::isatty(STDOUT_FILENO))
      throw dsv3::Error(
          "--watch redraws a terminal, but standard output is not one; "
          "remove --watch, or use --json for programs",
          dsv3::ExitCode::usage);
    watch(arguments, folder);
  } else {
    std::cout << page_of(arguments, folder, screen().columns);
  }
}

}  // namespace

void add_runs_commands(CLI::App& app, int&) {
  const auto arguments = std::make_shared<RunsArguments>();
  CLI::App* command =
      app.add_subcommand("runs", "List the runs in a folder with their state and last metrics");
  command
      ->add_option("folder", arguments->folder,
                   "Folder that contains runs [the output folder in config.yaml, or runs]")
      ->type_name("DIR");
  command
      ->add_option("--sort", arguments->sort,
                   "Column, metric or setting to sort by; descending after a '-', as in "
                   "--sort=-val/loss")
      ->type_name("KEY")
      ->capture_default_str();
  command
      ->add_option("--filter", arguments->filters,
                   "Show only runs with this setting or metric, such as 'optimizer=muon' or "
                   "'val/loss<4'; may be repeated")
      ->type_name("CONDITION")
      ->allow_extra_args(false);
  command
      ->add_option("--watch", arguments->watch, "Redraw every SECONDS [2] until stopped by Ctrl-C")
      ->type_name("SECONDS")
      ->expected(0, 1)
      ->default_str("2")
      ->check(number_between(0, 86400));
  command->add_flag("--json", arguments->json, "Print JSON");
  command
      ->add_option("--config", arguments->config,
                   "File with machine defaults [config.yaml, if it exists]")
      ->type_name("FILE");
  command->callback([arguments] { list_runs(*arguments); });
}
