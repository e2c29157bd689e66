#include "barrier/call.h"

#include <array>
#include <deque>
#include <mutex>

#include <ATen/record_function.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/tracker.h>

#include "plugin/library.h"

namespace dsv3::barrier {

const char* const kBackward = "backward";
constinit thread_local const InCall* innermost = nullptr;
Step step;

namespace {

/// An error that names its component already.
class Named final : public Error {
 public:
  using Error::Error;
};

// More than the calls that make nodes between a forward and its backward, recomputation included.
constexpr size_t kCalls = 4096;

struct MadeNodes {
  const Callee* callee = nullptr;
  uint64_t first = 0, end = 0, thread = 0;
};
std::array<MadeNodes, kCalls> made_nodes;
std::atomic<size_t> calls{0};

}  // namespace

const Callee& remember(Callee callee) {
  static std::mutex mutex;
  static std::deque<Callee>& all = *new std::deque<Callee>;  // never destroyed
  const std::lock_guard lock(mutex);
  return all.emplace_back(std::move(callee));
}

void remember_nodes(const Callee& callee, uint64_t first, uint64_t end) noexcept {
  const size_t index = calls.fetch_add(1, std::memory_order_relaxed) % kCalls;
  made_nodes[index] = {&callee, first, end, at::RecordFunction::currentThreadId()};
}

const Callee* maker_of(uint64_t node, uint64_t thread) noexcept {
  // A call inside of another one (a position's in an attention's) has the narrower range.
  const MadeNodes* found = nullptr;
  for (const MadeNodes& made : made_nodes) {
    if (!made.callee || made.thread != thread || node < made.first || node >= made.end) continue;
    if (!found || made.end - made.first < found->end - found->first) found = &made;
  }
  return found ? found->callee : nullptr;
}

std::string at_step() {
  const int64_t number = step.number;
  return number < 0 ? "" : " at step " + std::to_string(number);
}

std::string place(const Callee& callee, int64_t layer, const std::string& action) {
  std::string text = callee.label + " (";
  if (layer >= 0) text += "layer " + std::to_string(layer) + ", ";
  text += action + ")" + at_step();
  if (!callee.origin.empty()) text += ", " + callee.origin;
  return text + ", plugin " + callee.library + ": ";
}

void rethrow_behind(const std::string& place, ExitCode foreign) {
  try {
    throw;
  } catch (const Named&) {
    throw;
  } catch (const Error& error) {
    throw Named(place + error.what(), error.code());
  } catch (...) {
    // A plugin is not to blame for a small machine.
    throw Named(place + current_exception_text(),
                current_exception_is_out_of_memory() ? ExitCode::failed : foreign);
  }
}

void rethrow_named(const InCall& call) {
  if (call.callee.tracker) {
    try {
      throw;
    } catch (const RetryAfter&) {
      throw;
    } catch (const Rejected&) {
      throw;
    } catch (...) {
    }
  }
  rethrow_behind(place(call.callee, call.layer(), call.action), ExitCode::plugin);
}

void rethrow_from_constructor(const InCall& call) {
  try {
    throw;
  } catch (const Error& error) {
    const std::string& origin = call.callee.origin;
    throw Named(
        call.callee.label + (origin.empty() ? "" : " (" + origin + ")") + ": " + error.what(),
        error.code());
  } catch (...) {
    rethrow_named(call);
  }
}

}  // namespace dsv3::barrier
