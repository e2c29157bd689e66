// tracker/@NAME@: writes one JSON object per event to a file in the run folder.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <optional>

#include <nlohmann/json.hpp>

#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/tracker.h>
#include <dsv3/support/fs.h>

namespace {

struct Options {
  std::string file = "@NAME@.jsonl";
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("file", &Options::file, "name of the file in the run folder");
  }
};

// JSON cannot represent NaN or infinity.
nlohmann::json value_of(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

std::string line_of(const dsv3::Event& event) {
  nlohmann::json line{
      {"id", event.id}, {"step", event.step}, {"tokens", event.tokens}, {"time", event.time}};
  for (const auto& [name, value] : event.metrics) line["metrics"][name] = value_of(value);
  return line.dump() + '\n';
}

class JsonLines final : public dsv3::Tracker {
 public:
  using Options = ::Options;
  JsonLines(const Options& options, const dsv3::RunContext& run)
      : path_(std::filesystem::path(run.folder) / options.file) {}

  void start(const dsv3::RunInfo&) override {}

  // If this function throws, the core calls it again with the same events, and open() first removes
  // the lines that were already written.
  void deliver(std::span<const dsv3::Event> events) override {
    if (events.empty()) return;
    if (!writer_ || events.front().id != next_) open(events.front().id);
    std::string lines;
    for (const dsv3::Event& event : events) lines += line_of(event);
    next_ = -1;
    writer_->write(lines);
    writer_->sync();  // after deliver() returns, the core never delivers these events again
    next_ = events.back().id + 1;
  }

  void finish(dsv3::RunStatus) override { writer_.reset(); }

 private:
  // Removes the lines of events whose ids are `next` or higher, because the core delivers these
  // events again after a failure.
  void open(int64_t next) {
    writer_.reset();
    uintmax_t size = 0;
    std::ifstream file(path_);
    for (std::string line; std::getline(file, line) && !file.eof(); size += line.size() + 1) {
      const nlohmann::json event = nlohmann::json::parse(line, nullptr, false);
      if (!event.is_object() || event.value("id", next) >= next) break;
    }
    if (std::filesystem::exists(path_)) std::filesystem::resize_file(path_, size);
    writer_.emplace(dsv3::fs::Writer::append(path_));
  }

  std::filesystem::path path_;
  std::optional<dsv3::fs::Writer> writer_;
  int64_t next_ = -1;  // 1 + id of the last event in the file
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.tracker<JsonLines>("@NAME@", "@NAME@, based on the tracker template");
}
