#include "conformance/suite.h"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <malloc.h>
#include <thread>
#include <unistd.h>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <c10/core/DefaultDtype.h>

#include <dsv3/support/sha256.h>

namespace dsv3::conformance {
namespace {

std::string digest_of(const at::Tensor& bytes) {
  const at::Tensor flat = bytes.contiguous();
  return sha256(std::string(static_cast<const char*>(flat.data_ptr()), flat.nbytes()));
}

std::string generator_state() {
  at::Generator generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  return digest_of(generator.get_state());
}

std::string environment() {
  std::string all;
  for (char** entry = environ; *entry; ++entry) all += std::string(*entry) + "\n";
  return sha256(all);
}

std::string thread_count() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& task : std::filesystem::directory_iterator("/proc/self/task"))
    ++count;
  return std::to_string(count);
}

std::string child_processes() {
  std::string all, one;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream children(task.path() / "children");
    while (children >> one) all += one + " ";
  }
  return all;
}

std::vector<std::pair<std::string, std::string>> facts() {
  return {{"torch's global random generator", generator_state()},
          {"torch's default dtype", std::string(c10::get_default_dtype().name())},
          {"torch's grad mode", at::GradMode::is_enabled() ? "on" : "off"},
          {"torch's number of threads", std::to_string(at::get_num_threads())},
          {"the process's environment", environment()},
          {"the current folder", std::filesystem::current_path().string()},
          {"the number of threads", thread_count()},
          {"child processes", child_processes()}};
}

size_t allocated_bytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

}  // namespace

Violation::~Violation() = default;

void require(bool kept, const std::string& text) {
  if (!kept) throw Violation(text);
}

ProcessState::ProcessState() : facts_(facts()) {}

void ProcessState::require_unchanged() const {
  // Threads that were joined may take a moment to leave /proc.
  auto now = facts();
  for (int wait = 0; wait < 50 && now != facts_; ++wait) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    now = facts();
  }
  for (size_t i = 0; i < now.size(); ++i) {
    const auto& [what, value] = now[i];
    const bool readable = value.size() < 40 && facts_[i].second.size() < 40;
    require(value == facts_[i].second,
            "it changed " + what +
                (readable ? ": '" + facts_[i].second + "' before, '" + value + "' after" : ""));
  }
}

void require_steady_memory(const std::function<void()>& body) {
  constexpr int kRuns = 12;
  constexpr size_t kAllowed = 1024 * kRuns;
  const auto growth = [&] {
    const size_t before = allocated_bytes();
    for (int run = 0; run < kRuns; ++run) body();
    const size_t after = allocated_bytes();
    return after > before ? after - before : 0;
  };
  growth();  // caches and tables fill up
  const size_t first = growth(), second = growth(), third = growth();
  require(std::min({first, second, third}) < kAllowed,
          "memory grows by about " + std::to_string(third / kRuns) +
              " bytes with every use and is never given back");
}

std::vector<Check> checks(Kind kind) {
  switch (kind) {
    case Kind::attention:
      return attention_checks();
    case Kind::feed_forward:
      return feed_forward_checks();
    case Kind::position:
      return position_checks();
    case Kind::optimizer:
      return optimizer_checks();
    case Kind::schedule:
      return schedule_checks();
    case Kind::strategy:
      return strategy_checks();
    case Kind::tracker:
      return tracker_checks();
    case Kind::data:
      return data_checks();
    case Kind::tokenizer:
      return tokenizer_checks();
    case Kind::format:
      return format_checks();
  }
  throw Error("a kind without a conformance suite");
}

}  // namespace dsv3::conformance
