// Writes a run as a TensorBoard event file.
#include <algorithm>

#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/tracker.h>

#include "event_file.h"
#include "messages.h"

namespace tensorboard {
namespace {

using dsv3::protobuf::Message;
namespace stdfs = std::filesystem;

struct Options {
  std::string folder = "tensorboard";
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("folder", &Options::folder, "folder in the run folder that gets the event file");
    s.check([](const Options& o) -> std::string {
      const stdfs::path path(o.folder);
      const bool leaves = std::ranges::count(path, stdfs::path("..")) > 0;
      if (!path.empty() && path.is_relative() && !leaves) return "";
      return "folder must be a path inside the run folder, not '" + o.folder + "'";
    });
  }
};

class TensorboardTracker final : public dsv3::Tracker {
 public:
  using Options = tensorboard::Options;
  // TensorBoard reads files whose names contain "tfevents".
  TensorboardTracker(const Options& options, const dsv3::RunContext& context)
      : file_(stdfs::path(context.folder) / options.folder / "events.out.tfevents.dsv3",
              context.store) {}

  void start(const dsv3::RunInfo& run) override {
    end_time_ = run.start_time;
    const auto& [events, records, bytes] = file_.content();
    if (bytes > 0) return;
    file_.append({file_version(run.start_time), session_start(run.parameters, run.start_time)},
                 events, records);
  }

  void deliver(std::span<const dsv3::Event> events) override {
    std::vector<Message> messages;
    int64_t next = file_.content().events;
    for (const dsv3::Event& event : events) {
      if (event.id < next) continue;
      next = event.id + 1;
      end_time_ = std::max(end_time_, event.time);
      messages.push_back(scalars(event));
    }
    if (!messages.empty()) file_.append(messages, next, file_.content().records);
  }

  void record(std::span<const dsv3::Record> records) override {
    std::vector<Message> messages;
    int64_t next = file_.content().records;
    for (const dsv3::Record& record : records) {
      if (std::holds_alternative<dsv3::record::State>(record.content))
        end_time_ = std::max(end_time_, record.time);
      if (record.id < next) continue;
      next = record.id + 1;
      if (const auto* samples = std::get_if<dsv3::record::Samples>(&record.content))
        messages.push_back(samples_table(record, *samples));
    }
    if (!messages.empty()) file_.append(messages, file_.content().events, next);
  }

  /// TensorBoard reads a run's status only once, so that of a run that will resume is not written.
  void finish(dsv3::RunStatus status) override {
    if (status == dsv3::RunStatus::stopped) return;
    file_.append({session_end(status, end_time_)}, file_.content().events, file_.content().records);
  }

 private:
  EventFile file_;
  double end_time_ = 0;  // of the last event or state
};

}  // namespace
}  // namespace tensorboard

DSV3_PLUGIN(registrar) {
  registrar.tracker<tensorboard::TensorboardTracker>("tensorboard",
                                                     "TensorBoard event files in the run folder");
}
