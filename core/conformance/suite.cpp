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

namespace dsv3::conformance {
namespace {

std::string generator_state() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  const at::Tensor state = generator.get_state().contiguous();
  return sha256(std::string(static_cast<const char*>(state.data_ptr()), state.nbytes()));
}

std::string environment() {
  std::string all;
  for (char** entry = environ; *entry; ++entry) all += std::string(*entry) + "\n";
  return sha256(all);
}

std::string thread_count() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::to_string(std::distance(begin(tasks), end(tasks)));
}

std::string child_processes() {
  std::string all, process;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream children(task.path() / "children");
    while (children >> process) all += process + " ";
  }
  return all;
}

std::vector<std::pair<std::string, std::string>> process_facts() {
  return {{"torch's global random generator", generator_state()},
          {"torch's default dtype", std::string(c10::get_default_dtype().name())},
          {"torch's grad mode", at::GradMode::is_enabled() ? "on" : "off"},
          {"torch's number of threads", std::to_string(at::get_num_threads())},
          {"the process's environment", environment()},
          {"the current folder", std::filesystem::current_path().string()},
          {"the number of threads", thread_count()},
          {"child processes", child_processes()}};
}

/// Bytes by which the heap grows while `body` runs `runs` times.
size_t growth(int runs, const std::function<void()>& body) {
  const auto allocated = [] {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const size_t before = allocated();
  for (int run = 0; run < runs; ++run) body();
  const size_t after = allocated();
  return after > before ? after - before : 0;
}

}  // namespace

Violation::~Violation() = default;

void require_no_side_effects(const std::function<void()>& body) {
  const auto facts = process_facts();
  body();
  // Threads that were joined may take a moment to leave /proc.
  auto now = process_facts();
  for (int wait = 0; wait < 50 && now != facts; ++wait) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    now = process_facts();
  }
  for (size_t i = 0; i < now.size(); ++i) {
    const std::string &before = facts[i].second, &after = now[i].second;
    const bool readable = before.size() < 40 && after.size() < 40;
    require(before == after, "it changed ", now[i].first,
            readable ? ": '" + before + "' before, '" + after + "' after" : "");
  }
}

void require_steady_memory(const std::function<void()>& body) {
  constexpr int kRuns = 12;
  growth(kRuns, body);  // fills caches and tables
  const size_t first = growth(kRuns, body), second = growth(kRuns, body),
               third = growth(kRuns, body);
  require(std::min({first, second, third}) < 1024 * kRuns, "memory grows by about ", third / kRuns,
          " bytes with every use and is never freed");
}

std::vector<Check> checks(Kind kind) {
  static const std::map<Kind, std::vector<Check> (*)()> suites{
      {Kind::attention, attention_checks}, {Kind::feed_forward, feed_forward_checks},
      {Kind::position, position_checks},   {Kind::optimizer, optimizer_checks},
      {Kind::schedule, schedule_checks},   {Kind::strategy, strategy_checks},
      {Kind::tracker, tracker_checks},     {Kind::data, data_checks},
      {Kind::tokenizer, tokenizer_checks}, {Kind::format, format_checks}};
  return suites.at(kind)();
}

}  // namespace dsv3::conformance
