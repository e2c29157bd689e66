// Interface of trackers: where metrics go besides metrics.jsonl.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <dsv3/sdk/error.h>

namespace dsv3 {

/// What a tracker learns when a run starts or goes on.
struct RunInfo {
  std::string name;        ///< run name, also the run folder's
  std::string folder;      ///< absolute path
  std::string experiment;  ///< name in the experiment file
  std::string config;      ///< resolved experiment, YAML
  bool resumed = false;
};

enum class RunStatus { finished = 1, failed, stopped };

/// One line of metrics.jsonl. Delivered in order; `id` counts from 0 over the whole run, resumes
/// included.
struct Event {
  int64_t id = 0, step = 0, tokens = 0;
  double time = 0;  ///< seconds since the epoch
  std::vector<std::pair<std::string, double>> metrics;
};

/// Thrown by deliver(): try the same events again after `seconds`.
class RetryAfter : public Error {
 public:
  RetryAfter(const std::string& what, double seconds) : Error(what), seconds(seconds) {}
  ~RetryAfter() override;
  double seconds;
};

/// Thrown by deliver(): event `index` of the span will never be accepted; those before it were.
class Rejected : public Error {
 public:
  Rejected(const std::string& what, size_t index) : Error(what), index(index) {}
  ~Rejected() override;
  size_t index;
};

/// Calls come from one sender thread; training never waits for them.
class Tracker {
 public:
  virtual ~Tracker();
  virtual void start(const RunInfo& run) = 0;
  virtual void deliver(std::span<const Event> events) = 0;
  virtual void finish(RunStatus status) = 0;
};

/// What a tracker plugin is built with, next to its options.
struct RunContext {
  std::string folder;  ///< the run folder, absolute
};

}  // namespace dsv3
