// Which loaded component this process is in: what errors and crashes name. Being inside a call
// costs a few loads and stores; everything else happens when something went wrong.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include <ATen/SequenceNumber.h>

#include <dsv3/sdk/error.h>

namespace dsv3::barrier {

/// A component as errors name it.
struct Callee {
  std::string label;    ///< "attention 'mla'"
  std::string check;    ///< what `dsv3 plugins check` takes: "attention/mla", or the library
  std::string origin;   ///< "nano.yaml:5:13"; may be empty
  std::string library;  ///< the plugin's file
  std::string module;   ///< "layers.3.attention"; empty outside of layers
  int64_t layer = -1;   ///< -1 = outside of layers
  bool tracker = false;
};

/// Keeps `callee` for the rest of the process: crashes and autograd nodes may outlive components.
const Callee& remember(Callee callee);

class InCall;

/// This thread's innermost call. Placed so that a signal handler can read it.
extern constinit thread_local const InCall* innermost __attribute__((tls_model("initial-exec")));

/// Keeps which component made the autograd nodes [first, end) of this thread.
void remember_nodes(const Callee& callee, uint64_t first, uint64_t end) noexcept;

/// Lives while this thread is inside a component.
class InCall {
 public:
  /// `action`: a literal, e.g. "forward".
  InCall(const Callee& callee, const char* action) noexcept
      : callee(callee), action(action), outer(innermost), first_node_(at::sequence_number::peek()) {
    innermost = this;
  }
  ~InCall() {
    innermost = outer;
    const uint64_t end = at::sequence_number::peek();
    if (end != first_node_) remember_nodes(callee, first_node_, end);
  }
  InCall(const InCall&) = delete;
  InCall& operator=(const InCall&) = delete;

  const Callee& callee;
  const char* const action;
  const InCall* const outer;

  /// Of this call or of the nearest call around it that is in a layer; -1 = none.
  int64_t layer() const noexcept {
    for (const InCall* call = this; call; call = call->outer)
      if (call->callee.layer >= 0) return call->callee.layer;
    return -1;
  }

 private:
  uint64_t first_node_;
};

/// The component that made the autograd node with this number on this thread (Node::thread_id());
/// null = none, or too long ago. Safe in a signal handler.
const Callee* maker_of(uint64_t node, uint64_t thread) noexcept;

/// The optimizer step that this process works on, for texts.
struct Step {
  std::atomic<int64_t> number{-1};   ///< -1 = training has not begun
  std::atomic<int64_t> finished{0};  ///< steps behind it
};
extern Step step;

/// While one lives, errors tell the step.
class StepNumbers {
 public:
  StepNumbers() = default;
  ~StepNumbers() { step.number = -1; }
  StepNumbers(const StepNumbers&) = delete;
  StepNumbers& operator=(const StepNumbers&) = delete;
  void begin(int64_t number) const { set(number, number - 1); }
  void end(int64_t number) const { set(number, number); }

 private:
  static void set(int64_t number, int64_t finished) {
    step.number.store(number, std::memory_order_relaxed);
    step.finished.store(finished, std::memory_order_relaxed);
  }
};

/// " at step 12", or nothing before training.
std::string at_step();
/// "attention 'mla' (layer 3, forward) at step 12, nano.yaml:5:13, plugin /lib/libdsv3_mla.so: "
std::string place(const Callee& callee, int64_t layer, const std::string& action);
/// Throws what is being handled again as a dsv3::Error with `place` in front, unless it says one
/// already. A dsv3::Error keeps its exit code, running out of memory gets ExitCode::failed,
/// anything else `foreign`. Call inside a catch block.
[[noreturn]] void rethrow_behind(const std::string& place, ExitCode foreign);

/// Throws what is being handled again as one dsv3::Error that says component, layer, action, step,
/// place and library; RetryAfter and Rejected of a tracker stay what they are.
[[noreturn]] void rethrow_named(const InCall& call);
/// The same for a constructor, whose dsv3::Errors are mistakes of the user: those say component and
/// place only.
[[noreturn]] void rethrow_from_constructor(const InCall& call);

/// From now on autograd keeps the node in which a backward fails.
void watch_backward();
/// Forgets the node of an earlier failure.
void forget_failed_node();
/// Throws what is being handled again, naming the failed node and the component that made it.
[[noreturn]] void rethrow_from_backward(const InCall& call);

/// The action of a strategy's backward; in it, what runs belongs to whoever made the node.
extern const char* const kBackward;

}  // namespace dsv3::barrier
