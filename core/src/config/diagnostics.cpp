#include "config/diagnostics.h"

#include <algorithm>
#include <tuple>

#include <dsv3/runtime/config.h>

#include "config/excerpt.h"

namespace dsv3 {

Catalog::~Catalog() = default;
ConfigError::~ConfigError() = default;

std::string Origin::text() const {
  if (line == 0) return source;
  return source + ":" + std::to_string(line) + ":" + std::to_string(column);
}

}  // namespace dsv3

namespace dsv3::config {
namespace {

constexpr size_t kMaxShown = 50;  // mistakes printed; more help nobody

}  // namespace

int Diagnostics::add_source(std::string label, std::string text, bool is_file) {
  sources_.push_back({std::move(label), std::move(text), is_file});
  return static_cast<int>(sources_.size()) - 1;
}

void Diagnostics::error(Position at, size_t length, const std::string& message,
                        std::vector<std::string> notes) {
  for (const Mistake& known : errors_)
    if (known.at.line == at.line && known.at.column == at.column && known.at.source == at.source &&
        known.message == message)
      return;
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
  std::vector<const Mistake*> sorted;
  for (const Mistake& mistake : errors_) sorted.push_back(&mistake);
  std::stable_sort(sorted.begin(), sorted.end(), [](const Mistake* a, const Mistake* b) {
    return std::tie(a->at.source, a->at.line, a->at.column) <
           std::tie(b->at.source, b->at.line, b->at.column);
  });
  std::string text;
  for (size_t i = 0; i < std::min(sorted.size(), kMaxShown); ++i)
    text += (i ? "\n" : "") + render(*sorted[i]);
  if (sorted.size() > kMaxShown)
    text += "\nand " + std::to_string(sorted.size() - kMaxShown) + " more errors";
  throw ConfigError(text, static_cast<int>(sorted.size()));
}

Origin Diagnostics::origin(Position at) const {
  if (at.source < 0) return {"default", 0, 0};
  const Source& source = sources_.at(at.source);
  if (!source.is_file) return {source.label, 0, 0};
  return {source.label, at.line, at.column};
}

std::string Diagnostics::origin_text(Position at) const {
  if (at.source < 0 || sources_.at(at.source).is_file) return place(at);
  return place(at) + ": " + printable(sources_.at(at.source).text);
}

std::string Diagnostics::render(const Mistake& mistake) const {
  std::string text = place(mistake.at) + ": error: " + mistake.message + excerpt(mistake);
  for (const std::string& note : mistake.notes) text += "\n  note: " + note;
  return text;
}

std::string Diagnostics::excerpt(const Mistake& mistake) const {
  if (mistake.at.source < 0 || mistake.at.line < 1) return "";
  const Source& source = sources_.at(mistake.at.source);
  return config::excerpt(line_of(source.text, mistake.at.line),
                         source.is_file ? mistake.at.line : 0, mistake.at.column, mistake.length);
}

}  // namespace dsv3::config
