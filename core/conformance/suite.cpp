#include "conformance/suite.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <malloc.h>
#include <map>
#include <unistd.h>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <c10/core/DefaultDtype.h>

#include <dsv3/support/sha256.h>

#include "config/values.h"

namespace dsv3::conformance {
namespace {

std::vector<std::pair<std::string, std::string>> process_facts() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  const at::Tensor state = generator.get_state();
  const std::string_view random(static_cast<const char*>(state.data_ptr()), state.nbytes());
  std::string environment, children, process;
  for (char** entry = environ; *entry; ++entry) environment += std::string(*entry) + "\n";
  int threads = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    ++threads;
    std::ifstream file(task.path() / "children");
    while (file >> process) children += process + " ";
  }
  return {{"torch's global random generator", sha256(random)},
          {"torch's default dtype", std::string(c10::get_default_dtype().name())},
          {"torch's grad mode", at::GradMode::is_enabled() ? "on" : "off"},
          {"the number of torch threads", std::to_string(at::get_num_threads())},
          {"the process's environment", sha256(environment)},
          {"the current folder", std::filesystem::current_path().string()},
          {"the number of threads in the process", std::to_string(threads)},
          {"child processes", children}};
}

/// Returns the number of bytes by which the heap grows while `body` runs `runs` times.
int64_t growth(int runs, const std::function<void()>& body) {
  const auto allocated = [] {
    const struct mallinfo2 info = mallinfo2();
    return int64_t(info.uordblks + info.hblkhd);
  };
  const int64_t before = allocated();
  for (int run = 0; run < runs; ++run) body();
  return allocated() - before;
}

}  // namespace

void require_no_side_effects(const std::function<void()>& body) {
  const auto facts = process_facts();
  body();
  auto now = process_facts();
  // Joined threads may take a moment to disappear from /proc.
  for (int wait = 0; wait < 50 && now != facts; ++wait, now = process_facts())
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  for (size_t i = 0; i < now.size(); ++i) {
    const std::string &before = facts[i].second, &after = now[i].second;
    const bool readable = before.size() < 40 && after.size() < 40;
    const bool random = now[i].first.ends_with("random generator");
    require(before == after, "the component changes ", now[i].first,
            readable ? ": '" + before + "' before, '" + after + "' after" : "",
            random ? "; draw random numbers with dsv3::uniform or dsv3::dropout" : "");
  }
}

void require_steady_memory(const std::function<void()>& body) {
  constexpr int kRuns = 12;
  growth(kRuns, body);  // fills caches and tables
  int64_t least = INT64_MAX;
  for (int repeat = 0; repeat < 3; ++repeat) least = std::min(least, growth(kRuns, body));
  require(least < 1024 * kRuns, "memory grows by about ", least / kRuns,
          " bytes with every use and is never freed");
}

std::vector<Check> checks(Kind kind, bool gpu) {
  static const std::map<Kind, Suite*> suites{
      {Kind::attention, attention_checks}, {Kind::feed_forward, feed_forward_checks},
      {Kind::position, position_checks},   {Kind::optimizer, optimizer_checks},
      {Kind::schedule, schedule_checks},   {Kind::strategy, strategy_checks},
      {Kind::tracker, tracker_checks},     {Kind::data, data_checks},
      {Kind::tokenizer, tokenizer_checks}, {Kind::format, format_checks},
      {Kind::callback, callback_checks}};
  std::vector<Check> all;
  const AddCheck add = [&](const auto&... members) { all.push_back({members...}); };
  // `dsv3 plugins describe` prints the summary and the option descriptions.
  add("schema", "describes itself and its options", [](const Subject& subject) {
    require(!subject.component.summary.empty(), "its registration has no summary");
    for (const OptionSpec& spec : subject.component.schema->options) {
      require(!spec.doc.empty(), "option '", spec.key, "' has no description");
      const std::string wrong = config::misfit(spec, spec.default_value);
      require(spec.required || wrong.empty(), "the default of option '", spec.key, "' ", wrong);
    }
    for (const MetricSpec& metric : subject.component.schema->metrics)
      require(!metric.doc.empty(), "metric '", metric.name, "' has no description");
  });
  suites.at(kind)(add);
  if (!gpu) std::erase_if(all, [](const Check& check) { return check.name == kDeviceCheck; });
  return all;
}

}  // namespace dsv3::conformance
