// Log destinations. Programs configure them; log lines are written with dsv3/sdk/log.h.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include <dsv3/sdk/log.h>

namespace dsv3 {

/// Also writes all later log lines, including debug lines, to `path`. Rotates the file at 10 MiB
/// and keeps two older files (run.log, run.1.log, run.2.log). Closes the previous log file. Throws
/// dsv3::Error if the file cannot be opened.
void open_log_file(const std::filesystem::path& path);
/// Flushes and closes the log file, if any.
void close_log_file();

/// Sets the lowest level shown on the terminal: debug, info (the default), warning or error. Throws
/// dsv3::Error (ExitCode::usage) for other names.
void set_log_level(const std::string& name);

/// Hooks for a one-line progress display. `before` clears the display before a log line is written,
/// and `after` redraws it. They are called on the thread that logs, one line at a time, and must
/// not log. Pass {} to remove the hooks.
void set_progress_hooks(std::function<void()> before, std::function<void()> after);

/// Formats an error as programs print it, with the prefix "error: ". A configuration error gets no
/// prefix, because its message already contains "error: " after each location. Below each line with
/// a location (FILE:LINE:COLUMN), adds the source line and a caret.
std::string error_text(const std::string& what);

}  // namespace dsv3
