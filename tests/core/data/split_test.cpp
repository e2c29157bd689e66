// Tests the selection of held-out documents and the document order within an epoch.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <catch2/catch.hpp>

#include <dsv3/sdk/documents.h>

namespace {

std::vector<uint64_t> hashes(int count) {
  std::vector<uint64_t> result;
  for (int i = 0; i < count; ++i)
    result.push_back(dsv3::document_hash("document number " + std::to_string(i)));
  return result;
}

}  // namespace

TEST_CASE("hashes and random bits are the same on every machine and in every version") {
  // Changing these functions would move documents between splits in all existing experiments.
  CHECK(dsv3::document_hash("") == 0xe220a8397b1dcdafu);
  CHECK(dsv3::document_hash("And the LORD said") == 0x9a9321c67593982eu);
  CHECK(dsv3::random_bits({1, 2, 3}) == 0x1072deca7455826u);
}

TEST_CASE("a document's hash depends on its length and on every byte") {
  std::set<uint64_t> found;
  size_t texts = 0;
  for (size_t length = 0; length < 40; ++length) {
    const std::string text(length, 'a');
    found.insert(dsv3::document_hash(text));
    ++texts;
    for (size_t i = 0; i < length; ++i) {
      std::string changed = text;
      changed[i] = 'b';
      found.insert(dsv3::document_hash(changed));
      ++texts;
    }
  }
  CHECK(found.size() == texts);
}

TEST_CASE("the held-out set contains the requested fraction of documents") {
  const auto all = hashes(20'000);
  for (const double share : {0.001, 0.01, 0.1, 0.5, 0.9}) {
    const auto count = std::count_if(all.begin(), all.end(),
                                     [&](uint64_t hash) { return dsv3::held_out(hash, share); });
    // The tolerance is five standard deviations of the binomial distribution.
    const double expected = share * double(all.size());
    CHECK(std::abs(double(count) - expected) < 5 * std::sqrt(expected * (1 - share)));
  }
  for (const uint64_t hash : all) {
    CHECK_FALSE(dsv3::held_out(hash, 0));
    CHECK(dsv3::held_out(hash, 1));
  }
}

TEST_CASE("the held-out set for a larger fraction contains the one for a smaller fraction") {
  for (const uint64_t hash : hashes(2000))
    for (const double share : {0.01, 0.1, 0.4})
      if (dsv3::held_out(hash, share)) CHECK(dsv3::held_out(hash, share * 1.5));
}

TEST_CASE("a permutation contains every index exactly once and depends on seed and epoch") {
  for (const uint64_t count : {1, 2, 3, 4, 5, 17, 64, 1000, 4097}) {
    std::vector<uint64_t> order;
    const dsv3::Permutation permutation(count, 3, 1);
    for (uint64_t i = 0; i < count; ++i) order.push_back(permutation(i));
    std::vector<uint64_t> sorted = order;
    std::sort(sorted.begin(), sorted.end());
    for (uint64_t i = 0; i < count; ++i) REQUIRE(sorted[i] == i);
    if (count < 17) continue;
    CHECK(order != sorted);
    for (const dsv3::Permutation& other :
         {dsv3::Permutation(count, 4, 1), dsv3::Permutation(count, 3, 2)}) {
      std::vector<uint64_t> other_order;
      for (uint64_t i = 0; i < count; ++i) other_order.push_back(other(i));
      CHECK(order != other_order);
    }
  }
}

TEST_CASE("a permutation moves adjacent indices far apart") {
  // The mean distance between two random indices is a third of the count.
  constexpr uint64_t kCount = 10'000;
  const dsv3::Permutation permutation(kCount, 1, 0);
  double distance = 0;
  for (uint64_t i = 1; i < kCount; ++i)
    distance += std::abs(double(permutation(i)) - double(permutation(i - 1)));
  distance /= double(kCount - 1);
  CHECK(distance > 0.31 * kCount);
  CHECK(distance < 0.36 * kCount);
}
