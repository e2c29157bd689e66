// Logging for the core and plugins, to the terminal and to the run folder's log file.
#pragma once

#include <string>

namespace dsv3::log {

enum class Level { debug = 1, info, warning, error };

/// Writes one line. Thread-safe. `message` needs no newline.
void write(Level level, const std::string& message);

inline void debug(const std::string& message) {
  write(Level::debug, message);
}
inline void info(const std::string& message) {
  write(Level::info, message);
}
inline void warning(const std::string& message) {
  write(Level::warning, message);
}
inline void error(const std::string& message) {
  write(Level::error, message);
}

}  // namespace dsv3::log
