// The one exception type that dsv3 and its plugins throw for foreseeable mistakes.
#pragma once

#include <stdexcept>
#include <string>

namespace dsv3 {

/// Exit code of a program that ends with this kind of error.
enum class ExitCode : int {
  failed = 1,        ///< Anything not named below.
  usage = 2,         ///< Command line or experiment file.
  plugin = 3,        ///< A plugin cannot be found, loaded or built.
  data = 4,          ///< Input text, token shards, tokenizer files.
  checkpoint = 5,    ///< Reading or writing a checkpoint.
  peer_lost = 6,     ///< Another rank went away.
  not_finite = 7,    ///< Loss or gradients are NaN or infinite.
  preempted = 75,    ///< Stopped by a signal, with a checkpoint to go on from.
  interrupted = 130  ///< Stopped by Ctrl-C.
};

/// A foreseeable failure. `what()` says what went wrong, where, and what to do about it, in plain
/// words, without a trailing newline. Thrown by the core and by plugins alike; the core adds the
/// component and the experiment's file:line:col when an error leaves a plugin.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what, ExitCode code = ExitCode::failed)
      : std::runtime_error(what), code_(code) {}
  ~Error() override;  // out of line: the type's key function lives in libdsv3

  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

}  // namespace dsv3
