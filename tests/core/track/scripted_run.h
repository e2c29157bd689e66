// A run folder whose journals are sent to a tracker that follows a script.
#pragma once

#include <atomic>
#include <fstream>
#include <functional>
#include <mutex>
#include <numeric>

#include <dsv3/runtime/records_file.h>
#include <dsv3/support/json.h>

#include "core/support/temporary_folder.h"
#include "core/track/fake_clock.h"

using dsv3::Event;
using dsv3::NamedTracker;
using dsv3::RunStatus;
using dsv3::TrackerSender;
using Ids = std::vector<int64_t>;

/// All warnings since the last call, or since the test case began.
std::string take_log();

inline int count_in(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at) ++count;
  return count;
}

inline Ids ids_from(int64_t first, int64_t count) {
  Ids ids(static_cast<size_t>(count));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

/// What a ScriptedTracker does in a call, before it accepts the call's events.
using Script = std::function<void(int call, std::span<const Event> events)>;

/// Records the ids of the events that it accepted. Every function first runs its script, which may
/// throw; `call` counts from 0. Tests read it after the sender has ended, or while it waits.
class ScriptedTracker final : public dsv3::Tracker {
 public:
  void start(const dsv3::RunInfo&) override {
    if (on_start) on_start(starts++, {});
  }
  void deliver(std::span<const Event> events) override {
    sizes.push_back(events.size());
    const int call = deliveries++;
    if (on_deliver) on_deliver(call, events);
    for (const Event& event : events) accepted.push_back(event.id);
    received += std::ssize(events);
  }
  void record(std::span<const dsv3::Record> records) override {
    recorded.insert(recorded.end(), records.begin(), records.end());
  }
  bool uploads() const override { return bool(on_upload); }
  void upload(const std::filesystem::path&, const dsv3::Record& record) override {
    const std::string& name = std::get<dsv3::record::File>(record.content).path;
    on_upload(name);
    uploaded.push_back(name);
  }
  bool uploads_checkpoint(const dsv3::Record&) const override { return true; }
  void upload_checkpoint(const std::filesystem::path& folder, const dsv3::Record&) override {
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      uploaded.push_back((folder.filename() / entry.path().filename()).string());
  }
  void finish(RunStatus status) override {
    if (on_finish) on_finish(finishes++, {});
    finished.push_back(status);
  }

  Script on_start, on_deliver, on_finish;
  std::function<void(const std::string& name)> on_upload;  ///< empty = the tracker uploads nothing
  int starts = 0, finishes = 0;
  std::atomic<int> deliveries = 0;
  std::atomic<int64_t> received = 0;  ///< number of accepted events
  Ids accepted;
  std::vector<size_t> sizes;  ///< number of events in each call of deliver()
  std::vector<dsv3::Record> recorded;
  std::vector<std::string> uploaded;
  std::vector<RunStatus> finished;  ///< statuses of successful finish() calls
};

/// A run folder with a journal.
class Run {
 public:
  std::shared_ptr<FakeClock> clock = std::make_shared<FakeClock>();
  std::shared_ptr<ScriptedTracker> tracker = std::make_shared<ScriptedTracker>();

  const std::filesystem::path& folder() const { return folder_.path(); }
  std::filesystem::path journal() const { return folder_ / "metrics.jsonl"; }
  std::filesystem::path offset_file(const std::string& name = "first") const {
    return folder_ / "trackers" / (name + ".json");
  }
  int64_t offset(const std::string& name = "first") const {
    return dsv3::read_json(offset_file(name)).at("lines").get<int64_t>();
  }
  void append(int64_t count) {
    std::ofstream file(journal(), std::ios::app | std::ios::binary);
    for (; count > 0; --count)
      file << "{\"step\": " << lines_++ << ", \"tokens\": 8, \"time\": 1.5, \"train/loss\": 2}\n";
  }
  void record(dsv3::Record::Content content) const {
    std::ofstream(folder_ / "events.jsonl", std::ios::app | std::ios::binary)
        << dsv3::record_line({.step = 10, .time = 1.5, .content = std::move(content)});
  }
  std::unique_ptr<TrackerSender> sender(std::vector<NamedTracker> trackers) const {
    const dsv3::RunInfo info{
        .name = "run", .folder = folder_.path().string(), .experiment = "", .config = "dsv3: 1\n"};
    return std::make_unique<TrackerSender>(std::move(trackers), info, clock);
  }
  std::unique_ptr<TrackerSender> sender() const { return sender({{"first", tracker}}); }

 private:
  TemporaryFolder folder_;
  int64_t lines_ = 0;
};

/// Throws in the first `count` calls.
inline Script fails(int count) {
  return [count](int call, std::span<const Event>) {
    if (call < count) throw std::runtime_error("the server is down");
  };
}
