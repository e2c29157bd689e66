#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include <spdlog/logger.h>
#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <dsv3/runtime/logging.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>

#include "support/terminal.h"

namespace dsv3 {
namespace {

constexpr size_t kFileBytes = 10 << 20;
constexpr size_t kOlderFiles = 2;  // three in all

spdlog::level::level_enum spdlog_level(log::Level level) {
  static_assert(int(log::Level::debug) == SPDLOG_LEVEL_DEBUG &&
                int(log::Level::error) == SPDLOG_LEVEL_ERROR);
  return static_cast<spdlog::level::level_enum>(level);
}

// Flushes every line, so that a killed run leaves a complete log.
std::unique_ptr<spdlog::logger> make_logger(spdlog::sink_ptr sink) {
  auto logger = std::make_unique<spdlog::logger>("dsv3", std::move(sink));
  logger->flush_on(spdlog::level::debug);
  return logger;
}

std::unique_ptr<spdlog::logger> terminal_logger() {
  return make_logger(std::make_shared<spdlog::sinks::stderr_color_sink_st>(
      stderr_has_colors() ? spdlog::color_mode::always : spdlog::color_mode::never));
}

// The sinks need no locks, because `mutex` also protects the live line.
struct Logging {
  std::mutex mutex;
  std::unique_ptr<spdlog::logger> terminal = terminal_logger(), file;
  std::string live_line;

  Logging() { terminal->set_pattern("%H:%M:%S %^%l%$ %v"); }
};

// Never destroyed, because plugins and threads may log while the process exits.
Logging& logging() {
  static Logging& instance = *new Logging;
  return instance;
}

/// Returns `message` as it appears in the log, without newlines at its end.
std::string log_text(std::string_view message) {
  return indented(printable(message.substr(0, message.find_last_not_of('\n') + 1)));
}

}  // namespace

void log::write(Level level, const std::string& message) {
  Logging& state = logging();
  std::lock_guard lock(state.mutex);
  const std::string text = log_text(message);
  if (state.file) state.file->log(spdlog_level(level), text);
  if (!state.terminal->should_log(spdlog_level(level))) return;
  erase_live_line();
  state.terminal->log(spdlog_level(level), text);
  draw_live_line(state.live_line);
}

void open_log_file(const std::filesystem::path& path) {
  Logging& state = logging();
  std::lock_guard lock(state.mutex);
  try {
    state.file = make_logger(std::make_shared<spdlog::sinks::rotating_file_sink_st>(
        path.string(), kFileBytes, kOlderFiles));
  } catch (const spdlog::spdlog_ex& e) {
    throw Error("cannot write the log file " + path.string() + ": " + e.what());
  }
  state.file->set_level(spdlog::level::debug);
  state.file->set_pattern("%Y-%m-%d %H:%M:%S.%e %l %v");
}

void log_to_file(log::Level level, const std::string& message) {
  const std::lock_guard lock(logging().mutex);
  if (logging().file) logging().file->log(spdlog_level(level), log_text(message));
}

void close_log_file() {
  std::lock_guard lock(logging().mutex);
  logging().file.reset();
}

void set_log_level(const std::string& name) {
  constexpr std::array names{"debug", "info", "warning", "error"};
  const auto known = std::ranges::find(names, name);
  if (known == names.end())
    throw Error("unknown log level '" + name + "'; known: debug, info, warning, error",
                ExitCode::usage);
  const auto level = log::Level(int(log::Level::debug) + int(known - names.begin()));
  std::lock_guard lock(logging().mutex);
  logging().terminal->set_level(spdlog_level(level));
}

bool terminal_shows(log::Level level) {
  std::lock_guard lock(logging().mutex);
  return logging().terminal->should_log(spdlog_level(level));
}

void show_live_line(const std::string& line) {
  std::lock_guard lock(logging().mutex);
  logging().live_line = printable_line(line);
  erase_live_line();
  draw_live_line(logging().live_line);
}

void keep_live_line() {
  std::lock_guard lock(logging().mutex);
  logging().live_line.clear();
  end_live_line();
}

}  // namespace dsv3
