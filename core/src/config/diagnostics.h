// Collects every mistake of an experiment, then reports them together with source line and caret.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/experiment.h>

#include "config/node.h"

namespace dsv3::config {

class Diagnostics {
 public:
  /// Registers a text that positions refer to; `label` is a file name or words such as "command
  /// line".
  int add_source(std::string label, std::string text, bool is_file);
  const std::string& text(int source) const { return sources_.at(source).text; }

  /// Adds a mistake. `length` is the number of bytes to underline. The same mistake is kept once.
  void error(Position at, size_t length, const std::string& message,
             std::vector<std::string> notes = {});
  /// The same, underlining a scalar's text or the start of anything else.
  void error(const Node& node, const std::string& message, std::vector<std::string> notes = {});
  /// The same, underlining a key.
  void error(const Entry& entry, const std::string& message, std::vector<std::string> notes = {});

  bool any() const { return !errors_.empty(); }
  /// Throws ConfigError with all mistakes, sorted by source and line.
  void throw_if_any() const;

  Origin origin(Position at) const;
  /// "file:line:col", "command line" or "default".
  std::string place(Position at) const { return origin(at).text(); }
  /// The same, with the override itself behind the words: "command line: train.steps=7".
  std::string origin_text(Position at) const;

 private:
  struct Source {
    std::string label, text;
    bool is_file;
  };
  struct Mistake {
    Position at;
    size_t length;
    std::string message;
    std::vector<std::string> notes;
  };
  std::string render(const Mistake& mistake) const;
  std::string excerpt(const Mistake& mistake) const;

  std::vector<Source> sources_;
  std::vector<Mistake> errors_;
};

}  // namespace dsv3::config
