// The core calls every plugin through call(component, "forward", f). It records which component the
// thread is in, for crash reports, and adds the component's name to any exception from f.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

/// A component as it appears in error messages.
struct Callee {
  std::string label;    ///< "attention 'mla'"
  std::string check;    ///< argument of `dsv3 plugins check`: "attention/mla", or the library
  std::string origin;   ///< "nano.yaml:5:13"; may be empty
  std::string library;  ///< the plugin's file
  std::string module;   ///< "layers.3.attention"; empty outside of layers
  int64_t layer = -1;   ///< -1 = outside of layers
};

/// Stores `callee` until the process ends, because crash reports may outlive components.
const Callee& remember(Callee callee);

/// Exists while this thread is inside a component.
class CallRecord {
 public:
  /// `action` must be a literal, e.g. "forward".
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

/// The current optimizer step of this process, for messages.
struct CurrentStep {
  std::atomic<int64_t> number{-1};   ///< -1 = training has not begun
  std::atomic<int64_t> finished{0};  ///< number of completed steps
};
extern CurrentStep current_step;

/// An error that `call` passes on unchanged, because its message needs no component added.
class NamedError final : public Error {
 public:
  using Error::Error;
};

/// Rethrows the current exception as one dsv3::Error that starts with the call: "attention 'mla'
/// (layer 3, forward) at step 12, nano.yaml:5:13, plugin /lib/libdsv3_mla.so: ". A dsv3::Error
/// keeps its exit code. Running out of memory is `failed`, anything else `plugin`.
[[noreturn]] void rethrow_named(const Callee& callee, int64_t layer, const char* action);
/// Message of the current exception, whatever its type, without LibTorch's backtrace.
std::string current_exception_text();

/// Calls f(component, args...) as a call of `component`. `f` may be a member function. A component
/// that dsv3::make did not construct is called without a record.
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

/// Registers `callee` as the description of `component`, and reports its destructor as a call.
/// Positions and tokenizers,
/// which plugins call, also get a wrapper that uses `call`.
std::shared_ptr<Pluggable> guarded(const Callee& callee, std::shared_ptr<Pluggable> component);

}  // namespace dsv3
