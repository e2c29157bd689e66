// Byte-pair merging within one word.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace dsv3::bpe {

/// Merges adjacent pairs in rank order, and pairs of the same rank from left to right.
class Merges {
 public:
  struct Merge {
    uint32_t rank;
    int32_t id;  ///< id of the merged token
  };
  struct Scratch {
    std::vector<int32_t> ids, next, previous;
    std::vector<uint32_t> ranks;
    /// (rank, position in the word) of a pair, and the id of its merged token when it was pushed.
    std::vector<std::pair<uint64_t, int32_t>> heap;
  };

  /// `byte_ids` are the token ids of the 256 single bytes.
  void set_byte_ids(const std::array<int32_t, 256>& byte_ids) { byte_ids_ = byte_ids; }
  void reserve(size_t merges);
  /// Sets the merge for a pair, replacing any earlier one.
  void set(int32_t left, int32_t right, Merge merge);
  /// Appends the token ids for `word` to `out`.
  void apply(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  struct Slot {
    uint64_t pair = kFree;
    Merge merge{};
  };
  static constexpr uint64_t kFree = ~uint64_t{0};
  static constexpr uint32_t kNone = ~uint32_t{0};  // rank of a pair that cannot be merged

  size_t slot_of(uint64_t pair) const;
  const Merge* find(int32_t left, int32_t right) const;
  uint32_t rank(int32_t left, int32_t right) const;
  void merge_short(Scratch& scratch) const;
  void merge_long(Scratch& scratch) const;

  std::array<int32_t, 256> byte_ids_{};
  std::vector<Slot> slots_;  // open-addressing hash table; power-of-two size, at most half full
};

}  // namespace dsv3::bpe
