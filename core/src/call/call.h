// The core calls every plugin through call(component, "forward", f). call() records which component
// the thread is in, for crash reports, and adds the component's name to any exception from f.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include <dsv3/runtime/failure.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

/// A component's description for error messages.
struct Callee {
  std::string label;   ///< "attention 'mla'"
  std::string check;   ///< argument for `dsv3 plugins check`: "attention/mla" or the library's path
  std::string origin;  ///< where the component is configured, e.g. "nano.yaml:5:13"; may be empty
  std::string library;  ///< the plugin's file
  std::string module;   ///< "layers.3.attention"; empty if not in a layer
  int64_t layer = -1;   ///< -1 = not in a layer
};

/// Keeps `callee` alive until the process ends, because a crash may be reported after the component
/// has been destroyed.
const Callee& remember(Callee callee);

/// Records that this thread is inside a component for as long as the object exists.
class CallRecord {
 public:
  /// `action` must be a string literal, e.g. "forward".
  CallRecord(const Callee& callee, const char* action) noexcept;
  ~CallRecord() { current() = outer; }
  CallRecord(const CallRecord&) = delete;

  const Callee& callee;
  const char* const action;
  const CallRecord* const outer;

  /// The layer of this call or of the nearest enclosing call that has one; -1 = none.
  int64_t layer() const noexcept;
  /// This thread's innermost call. A signal handler may read it.
  static const CallRecord*& current() noexcept;
};

/// The process's current optimizer step, for error messages.
struct CurrentStep {
  std::atomic<int64_t> number{-1};   ///< -1 = training has not begun
  std::atomic<int64_t> finished{0};  ///< number of completed steps
  std::atomic<bool> on_gpu{false};   ///< whether the run trains on a GPU
};
extern CurrentStep current_step;

/// An error that already names its component, so `call` rethrows it unchanged.
class NamedError final : public Error {
 public:
  using Error::Error;
};

/// Rethrows the current exception as a dsv3::Error whose message starts with the call: "attention
/// 'mla' (layer 3, forward) at step 12, nano.yaml:5:13, plugin /lib/libdsv3_mla.so: ". A
/// dsv3::Error keeps its exit code. Running out of memory becomes ExitCode::out_of_memory, anything
/// else ExitCode::plugin.
[[noreturn]] void rethrow_named(const Callee& callee, int64_t layer, const char* action);

/// Makes backtraces print the path of `library` for code that was loaded from `image`. Thread-safe.
void name_image(const std::string& image, const std::string& library);

/// Calls f(component, args...) and records the call. `f` may be a member function. Calls to
/// components that dsv3::make did not construct are not recorded.
template <class Interface, class F, class... Args>
decltype(auto) call(Interface& component, const char* action, F&& f, Args&&... args) {
  if (!component.callee())
    return std::invoke(std::forward<F>(f), component, std::forward<Args>(args)...);
  const CallRecord record(*component.callee(), action);
  try {
    return std::invoke(std::forward<F>(f), component, std::forward<Args>(args)...);
  } catch (...) {
    rethrow_named(record.callee, record.layer(), record.action);
  }
}

/// Returns `component` with `callee` as its description, and with its destructor recorded as a
/// call. Position encodings and tokenizers, which plugins call directly, are returned in a wrapper
/// that uses `call`.
std::shared_ptr<Pluggable> guarded(const Callee& callee, std::shared_ptr<Pluggable> component);

}  // namespace dsv3
