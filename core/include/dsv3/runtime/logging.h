// Where log lines go: configured by programs, used through dsv3/sdk/log.h.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include <dsv3/sdk/log.h>

namespace dsv3 {

/// Also writes all further lines, including debug lines, to `path`, which is rotated at 10 MiB and
/// keeps two older files (run.log, run.1.log, run.2.log). Replaces the file opened before. Throws
/// dsv3::Error when it cannot be opened.
void open_log_file(const std::filesystem::path& path);
/// Flushes and closes the log file, if any.
void close_log_file();

/// Lowest level that the terminal shows: debug, info (the default), warning or error. Throws
/// dsv3::Error (ExitCode::usage) for other names.
void set_log_level(const std::string& name);

/// For a one-line progress display: `before` clears it before a log line is written, `after` draws
/// it again. They are called on the thread that logs, one line at a time, and must not log. Pass {}
/// to remove the hooks.
void set_progress_hooks(std::function<void()> before, std::function<void()> after);

/// An error as programs print it: prefixed with "error: ", unless it is a checker's message, which
/// contains "error: " after its own positions. Below each line that names a position,
/// FILE:LINE:COLUMN, it shows that line of the file with a caret.
std::string error_text(const std::string& what);

}  // namespace dsv3
