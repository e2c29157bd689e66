#include "config/slots.h"

#include <array>

#include "config/node.h"

namespace dsv3::config {
namespace {

constexpr std::array<Slot, 9> kSlots{{
    {"model.attention", Kind::attention, true, false},
    {"model.position", Kind::position, false, false},
    {"model.feed_forward", Kind::feed_forward, true, false},
    {"optimizer", Kind::optimizer, true, false},
    {"schedule", Kind::schedule, false, false},
    {"strategy", Kind::strategy, false, false},
    {"data", Kind::data, false, false},
    {"data.tokenizer", Kind::tokenizer, false, true},
    {"tracker", Kind::tracker, true, true},
}};

}  // namespace

std::span<const Slot> slots() {
  return kSlots;
}

const Slot* slot_at(std::string_view path) {
  for (const Slot& slot : kSlots)
    if (slot.path == path) return &slot;
  const size_t dot = path.rfind('.');
  if (dot == path.npos || !is_index(path.substr(dot + 1))) return nullptr;
  const Slot* slot = slot_at(path.substr(0, dot));
  return slot && slot->list ? slot : nullptr;
}

std::vector<std::string> core_keys(Kind kind) {
  switch (kind) {
    case Kind::attention:
    case Kind::feed_forward:
      return {"plugin", "library", "layers"};
    case Kind::optimizer:
      return {"plugin", "library", "role", "match", "name"};
    case Kind::data:
      return {"plugin", "library", "tokenizer"};
    default:
      return {"plugin", "library"};
  }
}

}  // namespace dsv3::config
