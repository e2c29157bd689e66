#include "statistics.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <vector>

#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>
#include <nlohmann/json.hpp>

#include "call_site.h"
#include "copies.h"
#include "cost.h"
#include "memory.h"

namespace fake_cuda {
namespace {

using Json = nlohmann::json;

constexpr int kFrames = 5;

struct Total {
  int64_t calls = 0;
  Cost cost;

  void add(const Cost& one) {
    ++calls;
    cost.bytes += one.bytes;
    cost.flops += one.flops;
    cost.seconds += one.seconds;
  }
  Json json() const {
    return {
        {"calls", calls}, {"bytes", cost.bytes}, {"flops", cost.flops}, {"seconds", cost.seconds}};
  }
};

struct Wait {
  std::string reason;
  std::vector<std::string> site;
  auto operator<=>(const Wait&) const = default;
};

/// Statistics recorded between two calls of fake_cuda_mark().
struct Section {
  std::string name;
  std::map<std::string, Total> operators;
  std::map<Wait, int64_t> waits;
  std::map<Wait, std::pair<int64_t, int64_t>> event_waits;  // number of waits; smallest number of
                                                            // operators that were called between
                                                            // the event and a wait
  std::map<std::string, int64_t> attention;                 // number of calls by kernel
  int64_t peak_bytes = 0;

  Json json() const {
    Json json{{"name", name}, {"peak_bytes", peak_bytes}, {"attention", attention}};
    Total total;
    json["operators"] = Json::object();
    for (const auto& [operation, count] : operators) {
      json["operators"][operation] = count.json();
      total.calls += count.calls;
      total.cost.bytes += count.cost.bytes;
      total.cost.flops += count.cost.flops;
      total.cost.seconds += count.cost.seconds;
    }
    json["total"] = total.json();
    json["waits"] = json["event_waits"] = Json::array();
    for (const auto& [wait, calls] : waits)
      json["waits"].push_back({{"reason", wait.reason}, {"site", wait.site}, {"calls", calls}});
    for (const auto& [wait, count] : event_waits)
      json["event_waits"].push_back({{"reason", wait.reason},
                                     {"site", wait.site},
                                     {"calls", count.first},
                                     {"operators_since", count.second}});
    return json;
  }
};

struct Statistics {
  std::mutex mutex;
  std::vector<Section> sections{Section{.name = "start"}};
  int64_t operators = 0;

  Section& current() { return sections.back(); }
};

Statistics& statistics() {
  static Statistics& instance = *new Statistics;
  return instance;
}

std::atomic<WaitCallback> wait_callback{nullptr};

int64_t peak_bytes() {
  using c10::CachingAllocator::StatType;
  return heap().getDeviceStats(0).allocated_bytes[size_t(StatType::AGGREGATE)].peak;
}

const char* log_path() {
  return std::getenv("FAKE_CUDA_LOG");
}

}  // namespace

void count_operator(const std::string& name, const std::vector<c10::IValue>& arguments,
                    const std::vector<c10::IValue>& results) {
  const Cost cost = cost_of(name, arguments, results);
  Statistics& all = statistics();
  const std::lock_guard lock(all.mutex);
  all.current().operators[name].add(cost);
  ++all.operators;
}

void count_wait(const std::string& reason) {
  const WaitCallback callback = wait_callback;
  static const char* mode = std::getenv("FAKE_CUDA_SYNC");
  static const bool is_error = mode && std::string(mode) == "error";
  TORCH_CHECK(!is_error, "the host waits for the device: ", reason);
  Statistics& all = statistics();
  const std::vector<std::string> site =
      log_path() || callback ? call_site(kFrames) : std::vector<std::string>();
  if (callback) {
    const std::vector<std::string> innermost(site.begin(),
                                             site.begin() + std::min<int64_t>(2, std::ssize(site)));
    callback(reason.c_str(), c10::Join(" < ", innermost).c_str());
  }
  if (log_path()) {
    const std::lock_guard lock(all.mutex);
    ++all.current().waits[{reason, site}];
  }
  complete_copies();
}

void count_event_wait(int64_t queued, int64_t ticket) {
  Statistics& all = statistics();
  if (log_path()) {
    const std::vector<std::string> site = call_site(kFrames);
    const std::lock_guard lock(all.mutex);
    auto [found, is_new] =
        all.current().event_waits.try_emplace({"synchronize event", site}, 0, queued);
    ++found->second.first;
    found->second.second = std::min(found->second.second, queued);
  }
  complete_copies(ticket);
}

void count_attention(const std::string& kernel) {
  Statistics& all = statistics();
  const std::lock_guard lock(all.mutex);
  ++all.current().attention[kernel];
}

int64_t operator_count() {
  Statistics& all = statistics();
  const std::lock_guard lock(all.mutex);
  return all.operators;
}

void fake_cuda_mark(const char* name) {
  Statistics& all = statistics();
  const std::lock_guard lock(all.mutex);
  all.current().peak_bytes = peak_bytes();
  heap().resetPeakStats(0);
  all.sections.push_back(Section{.name = name});
}

void fake_cuda_on_wait(WaitCallback callback) {
  wait_callback = callback;
}

void fake_cuda_finish() {
  write_statistics();
  std::_Exit(0);
}

void write_statistics() {
  const char* path = log_path();
  if (!path) return;
  Statistics& all = statistics();
  const std::lock_guard lock(all.mutex);
  if (all.operators == 0) return;  // the process is probably a child, such as git or a shell
  all.current().peak_bytes = peak_bytes();
  Json json{{"dry", dry()}, {"device_bytes", device_bytes()}, {"sections", Json::array()}};
  int64_t peak = 0;
  for (const Section& section : all.sections) {
    json["sections"].push_back(section.json());
    peak = std::max(peak, section.peak_bytes);
  }
  json["peak_bytes"] = peak;
  std::ofstream(path) << json.dump(1) << '\n';
}

}  // namespace fake_cuda
