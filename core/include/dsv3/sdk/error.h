// The exception type that dsv3 and its plugins throw for foreseeable errors.
#pragma once

#include <stdexcept>
#include <string>

namespace dsv3 {

/// Kinds of errors. A program that ends with an error returns its kind as the exit code.
enum class ExitCode : int {
  failed = 1,         ///< any other error
  usage = 2,          ///< invalid command line or experiment file
  plugin = 3,         ///< a plugin cannot be found, loaded or constructed
  data = 4,           ///< invalid input text, token shards or tokenizer files
  checkpoint = 5,     ///< a checkpoint cannot be read or written
  peer_lost = 6,      ///< another rank exited or stopped responding
  not_finite = 7,     ///< loss, gradients or weights are NaN or infinite
  out_of_memory = 8,  ///< the host or the GPU has too little memory
  preempted = 75,     ///< stopped by a signal after saving a checkpoint
  interrupted = 130   ///< stopped by Ctrl-C
};

/// An error with a foreseeable cause. `what()` says what failed, where, and what to do about it,
/// without a trailing newline. If a plugin throws it, the core adds the component and the
/// experiment's file:line:col.
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
