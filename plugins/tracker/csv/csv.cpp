// Writes metrics to a CSV file in the run folder.
#include <charconv>
#include <cmath>
#include <fstream>
#include <memory>

#include <dsv3/sdk/log.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/tracker.h>
#include <dsv3/support/fs.h>

namespace {

struct CsvOptions {
  std::string file = "metrics.csv";
  static void describe(dsv3::OptionSchema<CsvOptions>& s) {
    s.add("file", &CsvOptions::file, "name of the CSV file in the run folder");
    s.check([](const CsvOptions& o) -> std::string {
      // Require .csv, because the run itself writes no file with this extension.
      const std::filesystem::path name(o.file);
      if (name.extension() == ".csv" && !name.has_parent_path()) return "";
      return "file must be a file name that ends in .csv, without a folder, not '" + o.file + "'";
    });
  }
};

std::string text_of(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[32];
  // Formats a number with the fewest digits that round-trip.
  const auto result = std::to_chars(buffer, buffer + sizeof buffer, value);
  return {buffer, result.ptr};
}

class CsvTracker final : public dsv3::Tracker {
 public:
  using Options = CsvOptions;
  CsvTracker(const Options& options, const dsv3::RunContext& run)
      : path_(std::filesystem::path(run.folder) / options.file) {}

  void start(const dsv3::RunInfo&) override {}

  void deliver(std::span<const dsv3::Event> events) override {
    if (!writer_) open(events.front().id);
    std::string rows;
    for (const dsv3::Event& event : events) {
      const std::string head = std::to_string(event.id) + ',' + std::to_string(event.step) + ',' +
                               std::to_string(event.tokens) + ',' + text_of(event.time) + ',';
      for (const auto& [name, value] : event.metrics)
        rows += head + name + ',' + text_of(value) + '\n';
    }
    writer_->write(rows);
    writer_->sync();
  }

  void finish(dsv3::RunStatus) override { writer_.reset(); }

 private:
  /// Removes the rows for event number `next` and all later events. They were written, perhaps
  /// incompletely, but not acknowledged before a crash, so the core delivers them again.
  void open(int64_t next) {
    uintmax_t size = 0;
    int64_t last = -1;  // number of the last event in the file
    if (std::ifstream file(path_); file) {
      std::string line;
      while (std::getline(file, line) && !file.eof()) {
        const int64_t id = size > 0 ? std::strtoll(line.c_str(), nullptr, 10) : -1;
        if (id >= next) break;
        last = id;
        size += line.size() + 1;
      }
    }
    if (last + 1 < next)
      dsv3::log::warning(path_.string() + " lacks earlier metrics; they are in metrics.jsonl");
    if (size > 0) std::filesystem::resize_file(path_, size);
    writer_ = size > 0 ? std::make_unique<dsv3::fs::Writer>(dsv3::fs::Writer::append(path_))
                       : std::make_unique<dsv3::fs::Writer>(path_);
    if (size == 0) {
      writer_->write(std::string_view("id,step,tokens,time,name,value\n"));
      dsv3::fs::sync_folder(path_.parent_path());
    }
  }

  std::filesystem::path path_;
  std::unique_ptr<dsv3::fs::Writer> writer_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.tracker<CsvTracker>("csv", "Metrics as a CSV table in the run folder");
}
