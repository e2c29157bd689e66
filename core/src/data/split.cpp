#include <bit>
#include <cmath>
#include <cstring>

#include <dsv3/sdk/documents.h>

namespace dsv3 {
namespace {

// The finaliser of SplitMix64, a bijection in which every output bit depends on every input bit.
uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t absorb(uint64_t state, uint64_t word) {
  return mix((state ^ word) + 0x9e3779b97f4a7c15u);
}

}  // namespace

uint64_t random_bits(std::initializer_list<uint64_t> words) {
  uint64_t state = words.size();
  for (uint64_t word : words) state = absorb(state, word);
  return state;
}

uint64_t document_hash(std::string_view bytes) {
  static_assert(std::endian::native == std::endian::little,
                "the hash supports only little-endian machines");
  uint64_t state = bytes.size();
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    // With one multiplication per 64-bit word, hashing keeps up with the disk. The rotation moves
    // high bits down.
    state = std::rotl((state ^ word) * 0x9e3779b97f4a7c15u, 29);
  }
  uint64_t rest = 0;
  std::memcpy(&rest, bytes.data() + i, bytes.size() - i);
  return absorb(mix(state), rest);
}

bool held_out(uint64_t hash, double validation_share) {
  return std::ldexp(double(hash >> 11), -53) < validation_share;
}

Permutation::Permutation(uint64_t count, uint64_t seed, uint64_t epoch)
    : count_(count),
      half_bits_(count < 4 ? 1 : (std::bit_width(count - 1) + 1) / 2),
      key_(random_bits({seed, epoch})) {}

uint64_t Permutation::operator()(uint64_t position) const {
  // A Feistel network permutes all integers of 2 * half_bits_ bits. Applying it until the value is
  // below count_ yields a permutation of 0 .. count_ - 1. This takes fewer than 4 applications on
  // average.
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {
    uint64_t left = position >> half_bits_, right = position & mask;
    for (uint64_t round = 0; round < 8; ++round) {
      const uint64_t next = left ^ (random_bits({key_, round, right}) & mask);
      left = right;
      right = next;
    }
    position = left << half_bits_ | right;
  } while (position >= count_);
  return position;
}

}  // namespace dsv3
