// Interface for trackers, which receive the metrics, records and files of a run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/pluggable.h>
#include <dsv3/sdk/records.h>

namespace dsv3 {

/// The state of a git repository.
struct GitState {
  std::string commit, branch;  ///< `branch` is empty if HEAD is detached
  std::string remote;          ///< URL of the remote "origin", without credentials; may be empty
  bool dirty = false;          ///< tracked files have uncommitted changes
};

/// The checkpoint of another run from which `--branch` has started a run.
struct BranchSource {
  std::string uid, name;  ///< of the other run; `uid` may be empty
  int64_t step = 0;
};

/// What a tracker receives when a run starts or resumes.
struct RunInfo {
  std::string name;        ///< name of the run and of its folder
  std::string folder;      ///< absolute path of the run folder
  std::string experiment;  ///< the experiment's `name` key
  std::string config;      ///< resolved experiment, YAML
  bool resumed = false;
  std::string uid = {};            ///< 32 hexadecimal digits; no other run has the same
  double start_time = 0;           ///< first start of the run, in seconds since the epoch
  std::string source = {};         ///< path of the experiment file, as the user passed it
  record::Values parameters = {};  ///< all resolved values by path, as in record::Parameters
  record::Values tags = {};
  std::optional<GitState> git = {};  ///< of the folder in which the run was started, if any
  std::optional<BranchSource> branched_from = {};  ///< none = the run has no such source
};

enum class RunStatus { finished = 1, failed, stopped };

/// One line in metrics.jsonl. Events are delivered in order. `id` counts from 0 over the whole run,
/// including resumes.
struct Event {
  int64_t id = 0, step = 0, tokens = 0;
  double time = 0;  ///< seconds since the epoch
  std::vector<std::pair<std::string, double>> metrics;
};

/// Thrown by a tracker's functions to request the same call again after `seconds`.
class RetryAfter : public Error {
 public:
  RetryAfter(const std::string& what, double seconds) : Error(what), seconds(seconds) {}
  ~RetryAfter() override;
  double seconds;
};

/// Sends a run's metrics, records and files to an external service or a file. Training never waits
/// for it, and a call that throws is repeated, with growing pauses, until it succeeds. All calls
/// come from one sender thread, except upload() and upload_checkpoint(), which have a thread of
/// their own and may run at the same time as the others, but not before start() has returned.
class Tracker : public Pluggable {
 public:
  ~Tracker() override;
  /// Why this tracker sends nothing from this process, such as a missing address; "" = it does. The
  /// core then calls no other function, and what the run records can be sent later.
  virtual std::string inactive() const { return ""; }
  /// Called once before training, on the training thread. Throws dsv3::Error (ExitCode::usage) if
  /// the settings cannot work, such as a wrong address or login, which ends the run. Returns within
  /// 10 s, also if the service cannot be reached.
  virtual void check(const RunInfo&) {}
  virtual void start(const RunInfo& run) = 0;
  /// Returns after each metric has been stored, or passed to TrackerStore::reject() because it can
  /// never be. The same events may be delivered again if the process was killed.
  virtual void deliver(std::span<const Event> events) = 0;
  /// The same for records. By default, ignores them.
  virtual void record(std::span<const Record> records);
  /// Ends a run, which may resume. Files may still be uploaded afterwards.
  virtual void finish(RunStatus status) = 0;

  /// Whether upload() and upload_checkpoint() are called at all.
  virtual bool uploads() const { return false; }
  /// Uploads a file. `record` has content of type record::File, with the file's path in the run
  /// folder. The content may be newer than the record. Returns after the file has been stored, or
  /// passed to TrackerStore::reject() because it can never be.
  virtual void upload(const std::filesystem::path& file, const Record& record);
  /// Whether upload_checkpoint() is called for this checkpoint. Called from the training thread
  /// when the checkpoint is saved.
  virtual bool uploads_checkpoint(const Record&) const { return false; }
  /// Uploads the files of a checkpoint. `folder` has links to them, so that it exists even if the
  /// run has removed the checkpoint. `checkpoint` has content of type record::Checkpoint.
  virtual void upload_checkpoint(const std::filesystem::path& folder, const Record& checkpoint);

  /// Downloads a run that another machine has sent: its newest checkpoint and its settings, with
  /// the paths that they had in the run folder, into `folder`. `id` is the run's identity on the
  /// service. Returns the run's name; "" if the service has no such run. Throws dsv3::Error
  /// (ExitCode::checkpoint) if the service has no checkpoint of it. Called instead of start().
  virtual std::string download(const std::string& id, const std::filesystem::path& folder);
};

/// Values that a tracker keeps in the run folder, and what it rejects. Thread-safe.
class TrackerStore {
 public:
  virtual ~TrackerStore();
  /// Returns a value that set() has stored, also in an earlier process; "" if there is none.
  virtual std::string get(const std::string& key) const = 0;
  /// Stores a value. The key "id" is for the run's identity on a server: `--run_id` accepts it.
  virtual void set(const std::string& key, const std::string& value) = 0;
  /// Writes to the run folder that a part of an event or a record can never be stored. `entry`
  /// names it, such as a metric. Does not throw.
  virtual void reject(const Event& event, const std::string& entry, const std::string& reason) = 0;
  virtual void reject(const Record& record, const std::string& entry,
                      const std::string& reason) = 0;
};

/// Addresses and credentials of this machine that come from one place. A credential is used only
/// with an address of the same place. They are never stored with a run.
struct SettingsLayer {
  std::string label;      ///< "environment" or the path of a file
  record::Values values;  ///< by the name of the environment variable: DATABRICKS_HOST
};

/// What a tracker plugin receives besides its options.
struct RunContext {
  std::string folder;                        ///< absolute path of the run folder
  std::shared_ptr<TrackerStore> store = {};  ///< never null in a run
  std::vector<SettingsLayer> settings = {};  ///< highest precedence first
  /// Requested when the run no longer waits for the tracker. A call must then end soon, by an
  /// exception.
  std::stop_token stop = {};
};

}  // namespace dsv3
