// Log destinations. Programs configure them; log lines are written with dsv3/sdk/log.h.
#pragma once

#include <filesystem>
#include <string>

#include <dsv3/sdk/log.h>

namespace dsv3 {

/// Also writes all later log lines, including debug lines, to `path`. Rotates the file at 10 MiB
/// and keeps two older files (run.log, run.1.log, run.2.log). Closes the previous log file. Throws
/// dsv3::Error if the file cannot be opened.
void open_log_file(const std::filesystem::path& path);
/// Writes a line to the log file only, if there is one.
void log_to_file(log::Level level, const std::string& message);
/// Flushes and closes the log file, if any.
void close_log_file();

/// Sets the lowest level shown on the terminal: debug, info (the default), warning or error. Throws
/// dsv3::Error (ExitCode::usage) for other names.
void set_log_level(const std::string& name);

/// Whether the terminal shows log lines of this level.
bool terminal_shows(log::Level level);

/// Shows `line`, a line of ASCII, below the log until the next call; "" removes it. Log lines
/// appear above it. If the terminal is too narrow, drops fields, separated by two spaces, at its
/// end. Shows nothing if standard error is not a terminal or TERM is dumb.
void show_live_line(const std::string& line);
/// Leaves the live line, if any, where it is, above later log lines and the shell's prompt.
void keep_live_line();

/// Formats an error as programs print it, with the prefix "error: ". A configuration error gets no
/// prefix, because its message already contains "error: " after each location. Below each line with
/// a location (FILE:LINE:COLUMN), adds the source line and a caret.
std::string error_text(const std::string& what);

}  // namespace dsv3
