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
  switch (level) {
    case log::Level::debug:
      return spdlog::level::debug;
    case log::Level::info:
      return spdlog::level::info;
    case log::Level::warning:
      return spdlog::level::warn;
    case log::Level::error:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// Sinks without locks of their own: one mutex also covers the progress hooks.
class Logging {
 public:
  Logging() : terminal_(make(std::make_shared<spdlog::sinks::stderr_color_sink_st>())) {
    terminal_->set_pattern("%H:%M:%S %^%l%$ %v");
  }

  void write(log::Level level, const std::string& message) {
    std::lock_guard lock(mutex_);
    if (file_) file_->log(spdlog_level(level), message);
    if (!terminal_->should_log(spdlog_level(level))) return;
    if (before_) before_();
    terminal_->log(spdlog_level(level), message);
    if (after_) after_();
  }

  void open(const std::filesystem::path& path) {
    std::lock_guard lock(mutex_);
    try {
      file_ = make(std::make_shared<spdlog::sinks::rotating_file_sink_st>(path.string(), kFileBytes,
                                                                          kOlderFiles));
    } catch (const spdlog::spdlog_ex& e) {
      throw Error("cannot write the log file " + path.string() + ": " + e.what());
    }
    file_->set_level(spdlog::level::debug);
    file_->set_pattern("%Y-%m-%d %H:%M:%S.%e %l %v");
  }

  void close() {
    std::lock_guard lock(mutex_);
    file_.reset();
  }

  void set_level(log::Level level) {
    std::lock_guard lock(mutex_);
    terminal_->set_level(spdlog_level(level));
  }

  void flush() {
    std::lock_guard lock(mutex_);
    terminal_->flush();
    if (file_) file_->flush();
  }

  void set_hooks(std::function<void()> before, std::function<void()> after) {
    std::lock_guard lock(mutex_);
    before_ = std::move(before);
    after_ = std::move(after);
  }

 private:
  // Lines are few: each is handed to the kernel at once, so that a killed run leaves a complete
  // log.
  static std::unique_ptr<spdlog::logger> make(spdlog::sink_ptr sink) {
    auto logger = std::make_unique<spdlog::logger>("dsv3", std::move(sink));
    logger->flush_on(spdlog::level::debug);
    return logger;
  }

  std::mutex mutex_;
  std::unique_ptr<spdlog::logger> terminal_, file_;
  std::function<void()> before_, after_;
};

// Never destroyed: plugins and threads may log while the process ends.
Logging& logging() {
  static Logging& instance = *new Logging;
  return instance;
}

}  // namespace

void log::write(Level level, const std::string& message) {
  logging().write(level, message);
}

void open_log_file(const std::filesystem::path& path) {
  logging().open(path);
}

void close_log_file() {
  logging().close();
}

void set_log_level(log::Level level) {
  logging().set_level(level);
}

void set_log_level(const std::string& name) {
  if (name == "debug") return set_log_level(log::Level::debug);
  if (name == "info") return set_log_level(log::Level::info);
  if (name == "warning") return set_log_level(log::Level::warning);
  if (name == "error") return set_log_level(log::Level::error);
  throw Error("unknown log level '" + name + "'; known: debug, info, warning, error",
              ExitCode::usage);
}

void flush_log() {
  logging().flush();
}

void set_progress_hooks(std::function<void()> before, std::function<void()> after) {
  logging().set_hooks(std::move(before), std::move(after));
}

}  // namespace dsv3
