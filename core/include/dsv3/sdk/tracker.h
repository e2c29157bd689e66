// Interface for trackers, which receive the metrics in metrics.jsonl.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

/// What a tracker receives when a run starts or resumes.
struct RunInfo {
  std::string name;        ///< name of the run and of its folder
  std::string folder;      ///< absolute path of the run folder
  std::string experiment;  ///< the experiment's `name` key
  std::string config;      ///< resolved experiment, YAML
  bool resumed = false;
};

enum class RunStatus { finished = 1, failed, stopped };

/// One line in metrics.jsonl. Events are delivered in order. `id` counts from 0 over the whole run,
/// including resumes.
struct Event {
  int64_t id = 0, step = 0, tokens = 0;
  double time = 0;  ///< seconds since the epoch
  std::vector<std::pair<std::string, double>> metrics;
};

/// Thrown by deliver() to request that the same events be delivered again after `seconds`.
class RetryAfter : public Error {
 public:
  RetryAfter(const std::string& what, double seconds) : Error(what), seconds(seconds) {}
  ~RetryAfter() override;
  double seconds;
};

/// Thrown by deliver() if `events[index]` can never be accepted. The events before it were
/// accepted.
class Rejected : public Error {
 public:
  Rejected(const std::string& what, size_t index) : Error(what), index(index) {}
  ~Rejected() override;
  size_t index;
};

/// Sends metrics to an external service or file. All calls come from one sender thread, and
/// training never waits for them.
class Tracker : public Pluggable {
 public:
  ~Tracker() override;
  virtual void start(const RunInfo& run) = 0;
  virtual void deliver(std::span<const Event> events) = 0;
  virtual void finish(RunStatus status) = 0;
};

/// What a tracker plugin receives besides its options.
struct RunContext {
  std::string folder;  ///< absolute path of the run folder
};

}  // namespace dsv3
