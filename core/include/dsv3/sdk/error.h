// The exception type that dsv3 and its plugins throw for foreseeable errors.
#pragma once

#include <stdexcept>
#include <string>

namespace dsv3 {

/// Exit code of a program that ends with an error of this kind.
enum class ExitCode : int {
  failed = 1,        ///< any other error
  usage = 2,         ///< command line or experiment file
  plugin = 3,        ///< a plugin cannot be found, loaded or constructed
  data = 4,          ///< input text, token shards, tokenizer files
  checkpoint = 5,    ///< reading or writing a checkpoint
  peer_lost = 6,     ///< another rank exited or stopped responding
  not_finite = 7,    ///< loss or gradients are NaN or infinite
  preempted = 75,    ///< stopped by a signal after saving a checkpoint to resume from
  interrupted = 130  ///< stopped by Ctrl-C
};

/// A foreseeable failure. `what()` says what failed, where, and what to do about it, without a
/// trailing newline. The core adds the component and the experiment's file:line:col to an error
/// that a plugin throws.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what, ExitCode code = ExitCode::failed)
      : std::runtime_error(what), code_(code) {}
  ~Error() override;  // out of line, so that the type's key function is in libdsv3

  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

}  // namespace dsv3
