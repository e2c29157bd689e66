#include "merges.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace dsv3::bpe {
namespace {

// Up to this number of bytes in a word, scanning all pairs is faster than a heap.
constexpr size_t kShortWord = 48;

uint64_t pair_of(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

void Merges::reserve(size_t merges) {
  slots_.assign(std::bit_ceil(merges * 2 + 2), Slot{});
}

size_t Merges::slot_of(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  size_t at = (pair * 0x9e3779b97f4a7c15u >> 32) & mask;
  while (slots_[at].pair != pair && slots_[at].pair != kFree) at = (at + 1) & mask;
  return at;
}

void Merges::set(int32_t left, int32_t right, Merge merge) {
  slots_[slot_of(pair_of(left, right))] = {pair_of(left, right), merge};
}

const Merges::Merge* Merges::find(int32_t left, int32_t right) const {
  const Slot& slot = slots_[slot_of(pair_of(left, right))];
  return slot.pair == kFree ? nullptr : &slot.merge;
}

uint32_t Merges::rank(int32_t left, int32_t right) const {
  const Merge* merge = find(left, right);
  return merge ? merge->rank : kNone;
}

void Merges::apply(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const {
  scratch.ids.clear();
  for (char byte : word) scratch.ids.push_back(byte_ids_[static_cast<uint8_t>(byte)]);
  if (word.size() <= kShortWord)
    merge_short(scratch);
  else
    merge_long(scratch);
  out.insert(out.end(), scratch.ids.begin(), scratch.ids.end());
}

void Merges::merge_short(Scratch& s) const {
  std::vector<int32_t>& ids = s.ids;
  if (ids.size() < 2) return;
  s.ranks.resize(ids.size() - 1);
  for (size_t i = 0; i + 1 < ids.size(); ++i) s.ranks[i] = rank(ids[i], ids[i + 1]);
  while (!s.ranks.empty()) {
    const auto lowest = std::min_element(s.ranks.begin(), s.ranks.end());
    if (*lowest == kNone) return;
    const size_t i = lowest - s.ranks.begin();
    ids[i] = find(ids[i], ids[i + 1])->id;
    ids.erase(ids.begin() + i + 1);
    s.ranks.erase(lowest);
    if (i > 0) s.ranks[i - 1] = rank(ids[i - 1], ids[i]);
    if (i + 1 < ids.size()) s.ranks[i] = rank(ids[i], ids[i + 1]);
  }
}

void Merges::merge_long(Scratch& s) const {
  // A doubly linked list of symbols and a heap of candidate pairs. Candidates whose pair has
  // changed since they were pushed are skipped.
  std::vector<int32_t>& ids = s.ids;
  const int32_t size = static_cast<int32_t>(ids.size());
  s.next.resize(size);
  s.previous.resize(size);
  s.heap.clear();
  const auto push = [&](int32_t at) {
    const Merge* merge = find(ids[at], ids[s.next[at]]);
    if (!merge) return;
    s.heap.push_back({uint64_t{merge->rank} << 32 | static_cast<uint32_t>(at), merge->id});
    std::push_heap(s.heap.begin(), s.heap.end(), std::greater<>());
  };
  for (int32_t i = 0; i < size; ++i) {
    s.next[i] = i + 1 < size ? i + 1 : -1;
    s.previous[i] = i - 1;
  }
  for (int32_t i = 0; i + 1 < size; ++i) push(i);
  while (!s.heap.empty()) {
    std::pop_heap(s.heap.begin(), s.heap.end(), std::greater<>());
    const auto [key, id] = s.heap.back();
    s.heap.pop_back();
    const int32_t at = static_cast<int32_t>(key & 0xFFFFFFFF);
    if (ids[at] < 0 || s.next[at] < 0) continue;  // already merged, or last in the list
    const int32_t right = s.next[at];
    const Merge* merge = find(ids[at], ids[right]);
    if (!merge || merge->id != id || merge->rank != key >> 32) continue;
    ids[at] = id;
    ids[right] = -1;
    s.next[at] = s.next[right];
    if (s.next[at] >= 0) s.previous[s.next[at]] = at;
    if (s.previous[at] >= 0) push(s.previous[at]);
    if (s.next[at] >= 0) push(at);
  }
  std::erase(ids, -1);
}

}  // namespace dsv3::bpe
