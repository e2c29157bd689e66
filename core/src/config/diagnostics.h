// Collects all errors of an experiment and reports them together, with source lines and carets.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <dsv3/runtime/experiment.h>

#include "config/node.h"

namespace dsv3::config {

class Diagnostics {
 public:
  /// Registers the text that positions refer to. `label` is a file name or "command line".
  int add_source(std::string label, std::string text, bool is_file);
  const std::string& text(int source) const { return sources_.at(source).text; }

  /// Adds an error. `length`: number of bytes to underline. Ignores repetitions and empty notes.
  void error(Position at, size_t length, const std::string& message,
             std::vector<std::string> notes = {});
  /// As above, underlining a scalar's text or the start of any other node.
  void error(const Node& node, const std::string& message, std::vector<std::string> notes = {});
  /// As above, underlining a key.
  void error(const Entry& entry, const std::string& message, std::vector<std::string> notes = {});

  bool any() const { return !errors_.empty(); }
  /// Throws ConfigError with all errors, sorted by source and line.
  void throw_if_any() const;

  Origin origin(Position at) const;
  /// "file:line:col", "command line" or "default".
  std::string place(Position at) const { return origin(at).text(); }

 private:
  struct Source {
    std::string label, text;
    bool is_file;
  };
  struct Problem {
    Position at;
    size_t length;
    std::string message;
    std::vector<std::string> notes;
  };
  std::string render(const Problem& problem) const;

  std::vector<Source> sources_;
  std::vector<Problem> errors_;
};

/// Line `line` (1-based) of `text` without its newline; empty if there is no such line.
std::string_view line_of(std::string_view text, int line);

/// Replaces the control characters in `text` by spaces, to protect the terminal.
std::string printable(std::string_view text);

/// The two lines below an error's first line: the source line, and `^~~~` below `length` bytes of
/// it from `column` (1-based, in bytes). `number` is the line number to print; 0 = none. A long
/// line is truncated around the column.
std::string excerpt(std::string_view line, int number, int column, size_t length);

/// The excerpt for `origin`, from its file or setting; empty for a default.
std::string excerpt_of(const Origin& origin);

}  // namespace dsv3::config
