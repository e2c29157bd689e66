#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <utility>

#include <spdlog/logger.h>
#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <dsv3/runtime/logging.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>

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

// The sinks need no locks, because `mutex` also protects the progress hooks.
struct Logging {
  std::mutex mutex;
  std::unique_ptr<spdlog::logger> terminal, file;
  std::function<void()> before_line, after_line;

  Logging() : terminal(make_logger(std::make_shared<spdlog::sinks::stderr_color_sink_st>())) {
    terminal->set_pattern("%H:%M:%S %^%l%$ %v");
  }
};

// Never destroyed, because plugins and threads may log while the process exits.
Logging& logging() {
  static Logging& instance = *new Logging;
  return instance;
}

}  // namespace

void log::write(Level level, const std::string& message) {
  Logging& state = logging();
  std::lock_guard lock(state.mutex);
  if (state.file) state.file->log(spdlog_level(level), message);
  if (!state.terminal->should_log(spdlog_level(level))) return;
  if (state.before_line) state.before_line();
  state.terminal->log(spdlog_level(level), message);
  if (state.after_line) state.after_line();
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

void set_progress_hooks(std::function<void()> before, std::function<void()> after) {
  std::lock_guard lock(logging().mutex);
  logging().before_line = std::move(before);
  logging().after_line = std::move(after);
}

}  // namespace dsv3
