// Where log lines go: set up by programs, used through dsv3/sdk/log.h.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include <dsv3/sdk/log.h>

namespace dsv3 {

/// Also writes every line from now on, debug lines included, to `path`: rotated at 10 MiB, two
/// older files kept (run.log, run.1.log, run.2.log). Replaces the file opened before. Throws
/// dsv3::Error when it cannot be opened.
void open_log_file(const std::filesystem::path& path);
/// Flushes and closes the log file, if any.
void close_log_file();

/// Least level that the terminal shows; `info` at the start.
void set_log_level(log::Level level);
/// The same by name: debug, info, warning, error. Throws dsv3::Error (ExitCode::usage) on other
/// words.
void set_log_level(const std::string& name);

/// Brings all lines written so far to the terminal and the disk's cache.
void flush_log();

/// For a one-line progress display: `before` takes it off the terminal ahead of a log line, `after`
/// puts it back. Called on the thread that logs, one line at a time; they must not log. Pass {} to
/// take off.
void set_progress_hooks(std::function<void()> before, std::function<void()> after);

/// An error as programs print it: "error: " in front, unless `what` is a checker's text, which
/// carries that word behind its own places; and below a line that names a place in a file,
/// FILE:LINE:COLUMN, that file's line with a caret.
std::string error_text(const std::string& what);

}  // namespace dsv3
