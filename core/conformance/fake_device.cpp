#include "conformance/fake_device.h"

#include <dlfcn.h>
#include <map>
#include <mutex>
#include <tuple>

namespace dsv3::conformance {
namespace {

/// Looks up a function that the fake device exports; null without the fake device.
template <class Function>
Function* find(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_DEFAULT, name));
}

/// Waits by phase, reason and call site.
struct Recorded {
  std::mutex mutex;
  std::string phase;
  std::map<std::tuple<std::string, std::string, std::string>, int64_t> waits;
};

Recorded& recorded() {
  static Recorded& instance = *new Recorded;
  return instance;
}

void record(const char* reason, const char* site) {
  Recorded& all = recorded();
  const std::lock_guard lock(all.mutex);
  ++all.waits[{all.phase, reason, site}];
}

using OnWait = void(void (*)(const char*, const char*));

void set_recorder(const char* phase, void (*callback)(const char*, const char*)) {
  static OnWait* const on_wait = find<OnWait>("fake_cuda_on_wait");
  if (!on_wait) return;
  {
    const std::lock_guard lock(recorded().mutex);
    recorded().phase = phase;
  }
  on_wait(callback);
}

}  // namespace

WaitRecorder::WaitRecorder(const char* phase) {
  set_recorder(phase, &record);
}

WaitRecorder::~WaitRecorder() {
  set_recorder("", nullptr);
}

std::vector<std::string> take_wait_notes() {
  Recorded& all = recorded();
  const std::lock_guard lock(all.mutex);
  std::vector<std::string> notes;
  for (const auto& [wait, count] : all.waits) {
    const auto& [phase, reason, site] = wait;
    notes.push_back("the host waits for the GPU in " + phase + " (" + std::to_string(count) +
                    " time(s)): " + reason + (site.empty() ? "" : ", called by " + site));
  }
  all.waits.clear();
  return notes;
}

std::string nan_hint() {
  if (!find<void>("fake_cuda_mark")) return "";
  return "; the fake device fills new memory with NaN, so the component probably reads memory that "
         "nothing has written";
}

void report_faults_to(void (*report)(const char* text)) {
  if (auto* on_fault = find<void(void (*)(const char*))>("fake_cuda_on_fault")) on_fault(report);
}

std::string untestable_part(const std::string& text) {
  for (const char* start : {"not testable on the fake device: ", "DispatchStub: missing"})
    if (const size_t at = text.find(start); at != text.npos)
      return text.substr(at, text.find('\n', at) - at);
  return "";
}

}  // namespace dsv3::conformance
