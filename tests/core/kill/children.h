// Trains in child processes that are killed at a chosen point. The parent has loaded the plugins
// and has no other threads, so starting a child costs only a fork.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

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

/// How a child process ended.
struct Ending {
  bool killed = false;
  int code = 0;   ///< exit code of a child that was not killed
  int calls = 0;  ///< number of system calls that wrote to disk
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
  std::filesystem::path run(const std::string& name) const { return folder_ / "runs" / name; }

 private:
  dsv3::RunRequest request(const std::string& name) const;

  TemporaryFolder folder_;
  dsv3::Plugins plugins_;
};
