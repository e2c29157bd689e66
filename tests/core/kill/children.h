// Trains in child processes that are killed, or receive signals, at a chosen point. The parent has
// loaded the plugins and has no other threads, so starting a child costs only a fork.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/trainer.h>

#include "core/support/power_cut.h"
#include "core/support/temporary_folder.h"

/// How a child process is killed.
struct Death {
  enum Kind {
    before_call,  ///< SIGKILL just before the `call`-th system call that writes to disk
    torn_write,   ///< from that call on, files can grow by at most `bytes`, then SIGXFSZ
    moment,       ///< SIGKILL after `seconds`
    power_cut,    ///< power cut before that call: some or all unsynced changes are lost
  };
  Kind kind = before_call;
  int call = 0;
  uint64_t bytes = 0;
  double seconds = 0;
  PowerCut::Unsynced unsynced = PowerCut::Unsynced::random;
  uint64_t seed = 0;
  std::string text() const;
};

/// A signal that a child process sends to itself.
struct Signal {
  enum Place {
    training,    ///< when a module returns in a training step
    evaluation,  ///< when a module returns in validation or in generation of samples
    saving,      ///< before a system call that saves a checkpoint
  };
  int number = 0;
  Place place = training;
  int count = 1;  ///< the signal is sent at the `count`-th such point after the previous signal
  std::string text() const;
};

/// How a child process ended.
struct Ending {
  bool killed = false;
  int code = 0;                 ///< exit code of a child that was not killed
  int calls = 0;                ///< number of system calls that wrote to disk
  std::array<int, 3> points{};  ///< for each Signal::Place, how often the child was there
  int signals_sent = 0;
  int64_t steps_at_signal = 0;  ///< number of completed steps when the last signal was sent
  double seconds = 0;
  std::string output;  ///< captured from stderr
};

/// A tiny experiment with every component of a DeepSeek-V3-style model, in a temporary folder.
class TinyExperiment {
 public:
  TinyExperiment();
  /// Starts the run `name`, or resumes it if it exists, in a child process that is killed as
  /// `death` specifies.
  Ending train(const std::string& name, const std::optional<Death>& death = {});
  /// Starts or resumes the run `name` in a child process that receives `signals` in this order.
  Ending train(const std::string& name, const std::vector<Signal>& signals);
  std::filesystem::path run(const std::string& name) const { return folder_ / "runs" / name; }

 private:
  dsv3::RunRequest request(const std::string& name) const;
  /// Trains in a child process that first calls `prepare`. Fills in all of Ending that does not
  /// depend on `prepare`.
  Ending train_in_child(const std::string& name, const std::function<void()>& prepare,
                        const std::optional<double>& kill_after = {});

  TemporaryFolder folder_;
  dsv3::Plugins plugins_;
};
