#include "train/tracking.h"

#include <utility>

#include "call/checked.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

}  // namespace

const char* name_of(RunStatus status) {
  return status == RunStatus::finished ? "finished"
         : status == RunStatus::failed ? "failed"
                                       : "stopped";
}

std::vector<NamedTracker> make_trackers(
    const Experiment& experiment, Plugins& plugins, const stdfs::path& run,
    const std::vector<SettingsLayer>& settings,
    const std::function<void(const std::string& name, const std::string& reason)>& inactive) {
  std::vector<NamedTracker> trackers;
  for (size_t i = 0; i < experiment.tracker.size(); ++i) {
    const ComponentSpec& spec = experiment.tracker[i];
    NamedTracker named{.name = spec.plugin + "-" + std::to_string(i), .tracker = nullptr};
    named.files = std::make_shared<TrackerFiles>(run / "trackers", named.name);
    named.tracker = make<Tracker>(
        plugins, spec, RunContext{run.string(), named.files, settings, named.stop.get_token()});
    if (const std::string reason = checked::inactive(*named.tracker); !reason.empty())
      inactive(spec.plugin, reason);
    else
      trackers.push_back(std::move(named));
  }
  return trackers;
}

Tracking::Tracking(const RunFolder& folder, bool is_first) : folder_(folder) {
  if (is_first) records_.emplace(folder.records());
}

std::string Tracking::name_of(const stdfs::path& path) const {
  return path.lexically_relative(folder_.path()).generic_string();
}

void Tracking::check(const RunInfo& info, std::vector<NamedTracker> trackers) {
  trackers_ = std::move(trackers);
  for (const NamedTracker& named : trackers_) checked::check(*named.tracker, info);
}

void Tracking::start(const RunInfo& info, int64_t step, const record::Values& changes,
                     const std::vector<record::Dataset>& datasets,
                     const std::vector<StoredCheckpoint>& checkpoints) {
  if (!records_) return;
  sender_ = std::make_unique<TrackerSender>(std::exchange(trackers_, {}), info);
  if (!info.resumed)
    record(step, record::Parameters{info.parameters});
  else if (!changes.empty())
    record(step, record::Parameters{changes});
  if (!info.tags.empty()) record(step, record::Tags{info.tags});
  for (const record::Dataset& dataset : datasets) {
    if (dataset.context == "validation") validation_ = dataset;
    record(step, dataset);
  }
  for (const stdfs::path& file : {folder_.config(), folder_.experiment(), folder_.provenance()})
    record_file(step, file);
  std::error_code none;
  for (stdfs::directory_iterator file(folder_.tokenizer(), none), end; !none && file != end;
       file.increment(none))
    record_file(step, file->path());
  record(step, record::State{info.resumed ? "resumed" : "running"});
  for (const StoredCheckpoint& checkpoint : checkpoints) record_checkpoint(checkpoint, 0);
}

void Tracking::clear() {
  if (records_) records_->clear();
}

void Tracking::record(int64_t step, Record::Content content, double time) {
  // Nothing is written to a folder that has taken the run folder's place.
  if (sender_ && folder_.exists() && records_->append(step, std::move(content), time))
    sender_->notify();
}

void Tracking::record_file(int64_t step, const stdfs::path& file) {
  std::error_code ignored;
  if (sender_ && stdfs::is_regular_file(file, ignored)) record(step, record::File{name_of(file)});
}

void Tracking::record_checkpoint(const StoredCheckpoint& checkpoint, double time) {
  checkpoints_.insert(name_of(checkpoint.folder));
  if (records_->has_checkpoint(checkpoint.step)) return;
  record::Checkpoint content{name_of(checkpoint.folder), {}};
  if (checkpoint.val_loss) {
    content.metrics["val/loss"] = *checkpoint.val_loss;
    content.dataset = validation_.name;
    content.digest = validation_.digest;
  }
  Record entry{.step = checkpoint.step, .content = std::move(content)};
  const bool is_uploaded = sender_->keep_for_upload(entry);
  record(entry.step, std::move(entry.content), time);
  // Another machine can resume the run only with these.
  if (is_uploaded)
    for (const stdfs::path& file : {folder_.metrics(), folder_.records()})
      record_file(entry.step, file);
}

void Tracking::checkpoint_saved(const StoredCheckpoint& checkpoint, double time) {
  if (!sender_) return;
  record_checkpoint(checkpoint, time);
  std::erase_if(checkpoints_, [&](const std::string& path) {
    std::error_code ignored;
    const bool removed = !stdfs::exists(folder_.path() / path, ignored);
    if (removed) record(checkpoint.step, record::CheckpointRemoved{path});
    return removed;
  });
}

void Tracking::notify() {
  if (sender_) sender_->notify();
}

void Tracking::finish(RunStatus status, int64_t step) {
  if (!sender_) return;
  for (const stdfs::path& file :
       {folder_.provenance(), folder_.metrics(), folder_.records(), folder_.log()})
    record_file(step, file);
  record(step, record::State{dsv3::name_of(status)});
  sender_->finish(status);
  sender_.reset();
}

}  // namespace dsv3
