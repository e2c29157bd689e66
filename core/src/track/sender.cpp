#include "track/sender.h"

#include <algorithm>

#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/records_file.h>
#include <dsv3/runtime/trackers.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

#include "call/checked.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

constexpr size_t kLinesPerCall = 200;
constexpr const char *kMetrics = "metrics.jsonl", *kRecords = "events.jsonl";
// Of the files that store which lines a tracker has acknowledged, after its name.
constexpr const char *kMetricsOffset = ".json", *kRecordsOffset = ".records.json",
                     *kUploadsOffset = ".uploads.json";
std::atomic<bool> any_abandoned{false};

SenderClock::Time after(SenderClock::Time time, double seconds) {
  return time + std::chrono::duration_cast<SenderClock::Time::duration>(
                    std::chrono::duration<double>(seconds));
}

/// Whether `path` stays inside the run folder. The journal of a run may come from someone else.
bool is_inside(const stdfs::path& path) {
  return path.is_relative() &&
         std::ranges::none_of(path, [](const stdfs::path& part) { return part == ".."; });
}

/// Links all files in `from`, or copies them where the file system has no links.
void link_files(const stdfs::path& from, const stdfs::path& to) {
  fs::make_folders(to);
  for (const stdfs::directory_entry& entry : stdfs::directory_iterator(from)) {
    const stdfs::path target = to / entry.path().filename();
    std::error_code error;
    if (stdfs::exists(target, error)) continue;
    stdfs::create_hard_link(entry.path(), target, error);
    if (error) stdfs::copy_file(entry.path(), target);
  }
}

}  // namespace

Event parse_event(const std::string& line, int64_t id) {
  const Json object = parse_json(line, "metrics.jsonl:" + std::to_string(id + 1));
  Event event;
  event.id = id;
  for (const auto& [key, value] : object.items()) {
    if (key == "step")
      event.step = value.get<int64_t>();
    else if (key == "tokens")
      event.tokens = value.get<int64_t>();
    else if (key == "time")
      event.time = value.get<double>();
    else
      event.metrics.emplace_back(key, number_from_json(value));
  }
  return event;
}

/// Delivers a run to one tracker. Its threads share ownership, because they may outlive the sender.
class TrackerSender::Delivery : public std::enable_shared_from_this<TrackerSender::Delivery> {
 public:
  Delivery(NamedTracker tracker, const RunInfo& run)
      : name_(tracker.name), tracker_(tracker.tracker), stop_(tracker.stop), run_(run) {
    files_ = tracker.files ? tracker.files : std::make_shared<TrackerFiles>(trackers(), name_);
  }

  void start(const std::shared_ptr<SenderClock>& clock) {
    const auto self = shared_from_this();
    std::vector<Channel> channels;
    channels.push_back(channel("deliver records", kRecords, kRecordsOffset, kLinesPerCall,
                               &Delivery::send_records));
    channels.push_back(channel("deliver metrics", kMetrics, kMetricsOffset, kLinesPerCall,
                               &Delivery::send_metrics));
    if (checked::uploads(*tracker_)) {
      std::vector<Channel> uploads;
      uploads.push_back(
          channel("upload files", kRecords, kUploadsOffset, 1, &Delivery::send_files));
      uploads_ = std::make_shared<SenderWorker>(name_, std::move(uploads), SenderWorker::Actions{},
                                                clock, stop_);
    }
    sender_ = std::make_shared<SenderWorker>(
        name_, std::move(channels),
        SenderWorker::Actions{.begin = [self] { checked::start(*self->tracker_, self->run_); },
                              .end = [self] { checked::finish(*self->tracker_, self->status_); },
                              .begun =
                                  [uploads = uploads_] {
                                    if (uploads) uploads->start();
                                  }},
        clock, stop_);
    sender_->start();
  }

  void notify() {
    for (const auto& worker : workers()) worker->notify();
  }

  bool keep_for_upload(const Record& record) {
    const auto& checkpoint = std::get<record::Checkpoint>(record.content);
    if (!uploads_ || !checked::uploads_checkpoint(*tracker_, record)) return false;
    try {
      link_files(stdfs::path(run_.folder) / checkpoint.path, kept(checkpoint));
    } catch (const std::exception& error) {
      log::warning("tracker '" + name_ + "' cannot upload " + checkpoint.path + ": " +
                   error.what());
      return false;
    }
    return true;
  }

  void begin_finish(RunStatus status, SenderClock::Time deadline,
                    SenderClock::Time begin_deadline) {
    status_ = status;  // the thread reads it after begin_finish()
    for (const auto& worker : workers()) worker->begin_finish(deadline, begin_deadline);
  }

  bool end(std::chrono::steady_clock::time_point limit) {
    bool complete = true, abandoned = false;
    std::string cause;
    for (const auto& worker : workers()) {
      complete &= worker->end(limit);
      abandoned |= worker->is_abandoned();
      if (cause.empty() && !worker->is_abandoned()) cause = worker->cause();
    }
    // Their channels own this object.
    sender_.reset();
    uploads_.reset();
    if (abandoned) {
      any_abandoned = true;
      files_->close();
    }
    if (files_->rejected() > 1)
      log::warning("tracker '" + name_ + "' rejected " + std::to_string(files_->rejected()) +
                   " entries, which are listed in " + files_->rejected_file().string());
    if (!complete)
      log::warning("tracker '" + name_ + "' " +
                   (abandoned ? "is still busy, and the run does not wait for it; the rest"
                              : "has not received everything; the rest") +
                   " will be sent when the run resumes, or by `dsv3 sync " +
                   shell_quoted(run_.folder) + "`" + (cause.empty() ? "" : ": " + cause));
    return complete;
  }

 private:
  std::vector<std::shared_ptr<SenderWorker>> workers() const {
    if (!uploads_) return {sender_};
    return {sender_, uploads_};
  }

  stdfs::path trackers() const { return stdfs::path(run_.folder) / "trackers"; }

  /// Folder with links to the files of a checkpoint that will be uploaded.
  stdfs::path kept(const record::Checkpoint& checkpoint) const {
    return trackers() / (name_ + ".uploads") / stdfs::path(checkpoint.path).filename();
  }

  using Send = void (Delivery::*)(const std::vector<std::string>&, int64_t);
  Channel channel(const char* what, const char* journal, const char* suffix, size_t lines,
                  Send send) {
    return {what, Feed(stdfs::path(run_.folder) / journal, trackers() / (name_ + suffix)), lines,
            [self = shared_from_this(), send](const std::vector<std::string>& text, int64_t first) {
              (self.get()->*send)(text, first);
            }};
  }

  /// Parses lines, and rejects those that cannot be parsed.
  template <class T>
  std::vector<T> parsed(const std::vector<std::string>& lines, int64_t first, const char* journal,
                        T (*parse)(const std::string&, int64_t)) {
    std::vector<T> items;
    for (size_t i = 0; i < lines.size(); ++i) {
      try {
        items.push_back(parse(lines[i], first + int64_t(i)));
      } catch (const std::exception& error) {
        files_->reject_line(journal, first + int64_t(i), error.what());
      }
    }
    return items;
  }

  void send_metrics(const std::vector<std::string>& lines, int64_t first) {
    checked::deliver(*tracker_, parsed<Event>(lines, first, kMetrics, parse_event));
  }

  void send_records(const std::vector<std::string>& lines, int64_t first) {
    checked::record(*tracker_, parsed<Record>(lines, first, kRecords, parse_record));
  }

  void send_files(const std::vector<std::string>& lines, int64_t first) {
    for (size_t i = 0; i < lines.size(); ++i) {
      Record record;
      try {
        record = parse_record(lines[i], first + int64_t(i));
      } catch (const std::exception&) {
        continue;  // send_records() rejects it
      }
      if (const auto* file = std::get_if<record::File>(&record.content))
        upload(record, *file);
      else if (const auto* checkpoint = std::get_if<record::Checkpoint>(&record.content))
        upload(record, *checkpoint);
    }
  }

  void upload(const Record& record, const record::File& file) {
    const stdfs::path path = stdfs::path(run_.folder) / file.path;
    std::error_code ignored;
    if (!is_inside(file.path) || !stdfs::is_regular_file(path, ignored)) return;
    checked::upload(*tracker_, path, record);
  }

  void upload(const Record& record, const record::Checkpoint& checkpoint) {
    const stdfs::path folder = kept(checkpoint);
    std::error_code ignored;
    if (!is_inside(checkpoint.path) || !stdfs::is_directory(folder, ignored)) return;
    checked::upload_checkpoint(*tracker_, folder, record);
    fs::remove_all(folder);
  }

  const std::string name_;
  const std::shared_ptr<Tracker> tracker_;
  std::shared_ptr<TrackerFiles> files_;
  std::stop_source stop_;
  const RunInfo run_;
  std::shared_ptr<SenderWorker> sender_, uploads_;  // the latter only if it uploads files
  RunStatus status_ = RunStatus::failed;
};

TrackerSender::TrackerSender(std::vector<NamedTracker> trackers, RunInfo run,
                             std::shared_ptr<SenderClock> clock)
    : run_(std::move(run)), clock_(std::move(clock)) {
  for (NamedTracker& tracker : trackers)
    deliveries_.push_back(std::make_shared<Delivery>(std::move(tracker), run_));
  for (const auto& delivery : deliveries_) delivery->start(clock_);
}

TrackerSender::~TrackerSender() {
  finish(RunStatus::failed, 0);
}

void TrackerSender::notify() {
  for (const auto& delivery : deliveries_) delivery->notify();
}

bool TrackerSender::keep_for_upload(const Record& checkpoint) {
  bool is_kept = false;
  for (const auto& delivery : deliveries_) is_kept |= delivery->keep_for_upload(checkpoint);
  return is_kept;
}

bool TrackerSender::finish(RunStatus status, double seconds, double begin_seconds) {
  const auto now = clock_->now();
  for (const auto& delivery : deliveries_)
    delivery->begin_finish(status, after(now, seconds), after(now, begin_seconds));
  // A call that has begun may take a while, even if there is no time for another attempt.
  const auto limit = after(std::chrono::steady_clock::now(), std::max(seconds, kEndSeconds));
  bool complete = true;
  for (const auto& delivery : deliveries_) complete &= delivery->end(limit);
  deliveries_.clear();
  return complete;
}

void skip_uploads(const stdfs::path& run, const std::string& tracker) {
  Feed feed(run / kRecords, run / "trackers" / (tracker + kUploadsOffset));
  while (true) {
    const std::vector<std::string> lines = feed.read(kLinesPerCall);
    if (lines.empty()) break;
    feed.acknowledge(lines);
  }
}

bool has_received_everything(const NamedTracker& tracker, const stdfs::path& run) {
  const auto is_complete = [&](const char* journal, const char* suffix) {
    return Feed(run / journal, run / "trackers" / (tracker.name + suffix)).read(1).empty();
  };
  return is_complete(kMetrics, kMetricsOffset) && is_complete(kRecords, kRecordsOffset) &&
         (!checked::uploads(*tracker.tracker) || is_complete(kRecords, kUploadsOffset));
}

bool has_busy_trackers() {
  return any_abandoned;
}

}  // namespace dsv3
