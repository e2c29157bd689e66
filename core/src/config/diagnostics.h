// Collects all configuration errors in an experiment and reports them together, with source lines
// and carets.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <dsv3/runtime/experiment.h>

#include "config/node.h"

namespace dsv3::config {

class Diagnostics {
 public:
  /// Registers source text to which positions can refer. `label` is a file name or "command line".
  int add_source(std::string label, std::string text, bool is_file);
  const std::string& text(int source) const { return sources_.at(source).text; }

  /// Adds an error that underlines `length` bytes of the source. Ignores repeated errors and empty
  /// notes.
  void error(Position at, size_t length, const std::string& message,
             std::vector<std::string> notes = {});
  /// As above, but underlines a scalar's text or the start of any other node.
  void error(const Node& node, const std::string& message, std::vector<std::string> notes = {});
  /// As above, but underlines a key.
  void error(const Entry& entry, const std::string& message, std::vector<std::string> notes = {});

  bool any() const { return !errors_.empty(); }
  /// Throws ConfigError with all errors, sorted by source and line.
  void throw_if_any() const;

  Origin origin(Position at) const;
  /// Formats a position as "file:line:col", "command line" or "default".
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

/// Formats the two lines below an error message: the source line, and `^~~~` under `length` bytes
/// from `column` (1-based, in bytes). `number` is the line number to print; 0 = none. Truncates a
/// long line around the column.
std::string excerpt(std::string_view line, int number, int column, size_t length);

/// Formats the excerpt for `origin`, from its file or command-line setting; empty for a default.
std::string excerpt_of(const Origin& origin);

}  // namespace dsv3::config
