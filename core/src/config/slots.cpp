#include "config/slots.h"

#include <sstream>

#include "config/node.h"

namespace dsv3::config {

std::span<const Slot> slots() {
  static const std::vector<Slot> slots = [] {
    std::vector<Slot> rows;
    for (const KindRow& row : kinds())
      if (!row.path.empty()) rows.push_back(row);
    return rows;
  }();
  return slots;
}

const Slot* slot_at(std::string_view path) {
  for (const Slot& slot : slots())
    if (slot.path == path) return &slot;
  const size_t dot = path.rfind('.');
  if (dot == path.npos || !is_index(path.substr(dot + 1))) return nullptr;
  const Slot* slot = slot_at(path.substr(0, dot));
  return slot && slot->list ? slot : nullptr;
}

std::vector<std::string> slot_keys(std::string_view section) {
  std::vector<std::string> keys;
  for (const Slot& slot : slots()) {
    const size_t dot = slot.path.rfind('.');
    const std::string_view outer = dot == slot.path.npos ? "" : slot.path.substr(0, dot);
    if (outer == section) keys.emplace_back(slot.path.substr(dot + 1));  // npos + 1 = 0
  }
  return keys;
}

std::vector<std::string> core_keys(Kind kind) {
  std::vector<std::string> keys{"plugin", "library"};
  for (const KindRow& row : kinds())
    if (row.kind == kind) {
      std::istringstream words{std::string(row.keys)};
      for (std::string word; words >> word;) keys.push_back(word);
    }
  return keys;
}

}  // namespace dsv3::config
