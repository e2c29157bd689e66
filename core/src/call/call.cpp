#include "call/call.h"

#include <deque>
#include <filesystem>
#include <mutex>
#include <new>
#include <system_error>

#include <c10/util/Exception.h>

#include <dsv3/runtime/printable.h>

namespace dsv3 {

CurrentStep current_step;

namespace {

// With the initial-exec TLS model, reading the pointer never allocates, so a signal handler may
// read it.
__attribute__((tls_model("initial-exec"))) constinit thread_local const CallRecord* innermost =
    nullptr;

constexpr const char* kUseLess =
    "; reduce train.micro_batch, train.sequence or the model size, or set model.recompute=full "
    "(--dry-run estimates the memory an experiment needs)";

struct Failure {
  std::string text;
  bool out_of_memory = false;
};

/// Returns the message of the current exception. LibTorch's CPU allocator has no exception type for
/// running out of memory, so its message is parsed.
Failure current_failure() {
  try {
    throw;
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    if (text.find("CUDA out of memory") != text.npos)
      return {text.substr(0, text.find_last_not_of(". \n") + 1) + kUseLess, true};
    constexpr std::string_view kBefore = "you tried to allocate ";
    const size_t at = text.find(kBefore);
    if (at == text.npos) return {text};
    const size_t begin = at + kBefore.size();
    const std::string bytes = text.substr(begin, text.find(' ', begin) - begin);
    return {"out of memory: failed to allocate " + bytes + " bytes" + kUseLess, true};
  } catch (const std::bad_alloc&) {
    return {std::string("out of memory") + kUseLess, true};
  } catch (const std::filesystem::filesystem_error& error) {
    return {"cannot access " + error.path1().string() + ": " + error.code().message()};
  } catch (const std::system_error& error) {
    // The constructor of std::thread
    if (error.code() != std::errc::resource_unavailable_try_again) return {error.what()};
    return {std::string("cannot start a thread: ") + error.what() +
                "; free some memory, or raise its limit or that of threads (ulimit -v, ulimit -u)",
            true};
  } catch (const std::exception& error) {
    return {error.what()};
  } catch (...) {
    return {"threw a value that is not a std::exception; throw dsv3::Error instead"};
  }
}

}  // namespace

const Callee& remember(Callee callee) {
  static std::mutex mutex;
  static std::deque<Callee>& all = *new std::deque<Callee>;  // never destroyed
  const std::lock_guard lock(mutex);
  return all.emplace_back(std::move(callee));
}

CallRecord::CallRecord(const Callee& callee, const char* action) noexcept
    : callee(callee), action(action), outer(innermost) {
  innermost = this;
}

int64_t CallRecord::layer() const noexcept {
  for (const CallRecord* call = this; call; call = call->outer)
    if (call->callee.layer >= 0) return call->callee.layer;
  return -1;
}

const CallRecord*& CallRecord::current() noexcept {
  return innermost;
}

void rethrow_named(const Callee& callee, int64_t layer, const char* action) {
  std::string call = callee.label + " (";
  if (layer >= 0) call += "layer " + std::to_string(layer) + ", ";
  call += std::string(action) + ")";
  if (const int64_t step = current_step.number; step >= 0)
    call += " at step " + std::to_string(step);
  if (!callee.origin.empty()) call += ", " + callee.origin;
  call += ", plugin " + callee.library + ": ";
  try {
    throw;
  } catch (const NamedError&) {
    throw;
  } catch (const Error& error) {
    throw NamedError(call + error.what(), error.code());
  } catch (...) {
    // Running out of memory is not the plugin's fault.
    const auto [text, out_of_memory] = current_failure();
    throw NamedError(call + text, out_of_memory ? ExitCode::out_of_memory : ExitCode::plugin);
  }
}

std::string current_exception_text() {
  return without_secrets(current_failure().text);
}

ExitCode current_exception_code() {
  try {
    throw;
  } catch (const Error& error) {
    return error.code();
  } catch (...) {
    return current_failure().out_of_memory ? ExitCode::out_of_memory : ExitCode::failed;
  }
}

}  // namespace dsv3
