#include "config/diagnostics.h"

#include <algorithm>

#include <dsv3/runtime/config.h>
#include <dsv3/runtime/printable.h>

namespace dsv3 {

Catalog::~Catalog() = default;
ConfigError::~ConfigError() = default;

std::string Origin::text() const {
  if (line == 0) return printable_line(source);
  return printable_line(source) + ":" + std::to_string(line) + ":" + std::to_string(column);
}

std::string Origin::full_text() const {
  return setting.empty() ? text() : text() + ": " + setting;
}

}  // namespace dsv3

namespace dsv3::config {

constexpr size_t kMaxShown = 50;  // maximum number of problems printed

int Diagnostics::add_source(std::string label, std::string text, bool is_file) {
  sources_.push_back({std::move(label), std::move(text), is_file});
  return static_cast<int>(sources_.size()) - 1;
}

void Diagnostics::error(Position at, size_t length, const std::string& message,
                        std::vector<std::string> notes) {
  for (const Problem& known : errors_)
    if (known.at == at && known.message == message) return;
  errors_.push_back({at, length, message, std::move(notes)});
}

void Diagnostics::error(const Node& node, const std::string& message,
                        std::vector<std::string> notes) {
  const size_t length = node.is_scalar() ? node.text.size() + (node.quoted ? 2 : 0) : 1;
  error(node.at, length, message, std::move(notes));
}

void Diagnostics::error(const Entry& entry, const std::string& message,
                        std::vector<std::string> notes) {
  error(entry.at, entry.key.size(), message, std::move(notes));
}

void Diagnostics::throw_if_any() const {
  if (errors_.empty()) return;
  std::vector<Problem> sorted = errors_;
  std::ranges::stable_sort(sorted, {}, &Problem::at);
  std::string text;
  for (size_t i = 0; i < std::min(sorted.size(), kMaxShown); ++i)
    text += (i ? "\n" : "") + render(sorted[i]);
  if (sorted.size() > kMaxShown)
    text += "\nand " + std::to_string(sorted.size() - kMaxShown) + " more errors";
  throw ConfigError(text, static_cast<int>(sorted.size()));
}

Origin Diagnostics::origin(Position at) const {
  if (at.source < 0) return {"default", 0, 0};
  const Source& source = sources_.at(at.source);
  if (!source.is_file) return {source.label, 0, at.column, printable_line(source.text)};
  return {source.label, at.line, at.column};
}

std::string Diagnostics::render(const Problem& problem) const {
  const auto& [at, length, message, notes] = problem;
  std::string text = place(at) + ": error: " + printable_line(message);
  if (at.source >= 0 && at.line > 0) {
    const Source& source = sources_.at(at.source);
    text += excerpt(line_of(source.text, at.line), source.is_file ? at.line : 0, at.column, length);
  }
  for (const std::string& note : notes)
    if (!note.empty()) text += "\n  note: " + printable_line(note);
  return text;
}

}  // namespace dsv3::config
