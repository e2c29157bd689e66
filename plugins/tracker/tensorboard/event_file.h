// A TensorBoard event file that contains every line of a run's journals once.
#pragma once

#include <memory>
#include <vector>

#include <dsv3/sdk/tracker.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/protobuf.h>

namespace tensorboard {

/// What the file contains: the events and records with smaller ids, in `bytes` bytes.
struct Content {
  int64_t events = 0, records = 0;
  uint64_t bytes = 0;
};

/// Appends to one file per run, also when the run resumes, because TensorBoard does not return to
/// an older file once it reads a newer one. Stores after each write what the file contains. What a
/// killed process had written after that is removed, and the core delivers it again.
class EventFile {
 public:
  /// Throws dsv3::Error if the stored content cannot be read.
  EventFile(std::filesystem::path path, std::shared_ptr<dsv3::TrackerStore> store);

  const Content& content() const { return content_; }
  /// Writes Event messages. The file then contains the events and records with ids below these.
  void append(const std::vector<dsv3::protobuf::Message>& messages, int64_t events,
              int64_t records);

 private:
  void open();
  void store(const Content& content);

  const std::filesystem::path path_;
  const std::shared_ptr<dsv3::TrackerStore> store_;
  Content content_;
  std::unique_ptr<dsv3::fs::Writer> writer_;
};

}  // namespace tensorboard
