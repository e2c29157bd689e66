// What a tracker keeps in the run folder.
#pragma once

#include <filesystem>
#include <map>
#include <mutex>

#include <dsv3/sdk/tracker.h>

namespace dsv3 {

/// Keeps values in <folder>/<tracker>.store.json, and rejected entries in
/// <folder>/<tracker>.rejected.jsonl.
class TrackerFiles final : public TrackerStore {
 public:
  /// `folder` is the run's trackers/ folder, which need not exist. Throws dsv3::Error if the values
  /// cannot be read.
  TrackerFiles(const std::filesystem::path& folder, const std::string& tracker);

  std::string get(const std::string& key) const override;
  void set(const std::string& key, const std::string& value) override;
  void reject(const Event& event, const std::string& entry, const std::string& reason) override;
  void reject(const Record& record, const std::string& entry, const std::string& reason) override;
  /// The same for a line that is not an event or record. `line` counts from 0.
  void reject_line(const std::string& journal, int64_t line, const std::string& reason);

  const std::filesystem::path& rejected_file() const { return rejected_file_; }
  int64_t rejected() const;  ///< number of rejected entries since the object was created
  /// From now on, writes nothing, because another process may have resumed the run.
  void close();

 private:
  void reject(const char* journal, int64_t line, int64_t step, const std::string& entry,
              const std::string& reason);

  const std::string tracker_;
  const std::filesystem::path store_file_, rejected_file_;
  mutable std::mutex mutex_;
  std::map<std::string, std::string> values_;
  int64_t rejected_ = 0;
  bool closed_ = false;
};

}  // namespace dsv3
