// Properties of packed streams and loaders on random documents: no token is lost or repeated, and
// neither the number of ranks, nor the micro-batch size, nor a resume changes the global stream.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include <dsv3/runtime/data.h>

#include "core/data/documents.h"
#include "core/support/temporary_folder.h"
#include "support/built_plugins.h"

using dsv3::DataContext;
using dsv3::PackedStream;
using dsv3::Permutation;
using dsv3::Split;

namespace {

constexpr int kCases = 50;
const std::vector<int64_t> kWorlds{1, 2, 4};

/// One random stream: its documents, sequence length and seed.
struct Case {
  std::vector<int64_t> lengths;
  int64_t sequence;
  uint64_t seed;
  Split split;
};

int64_t between(std::mt19937_64& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

uint64_t test_seed() {
  const char* text = std::getenv("DSV3_TEST_SEED");
  return text && *text ? std::stoull(text) : std::random_device()();
}

/// Documents without tokens, of one token, shorter than a row, and longer than several rows.
Case any_case(std::mt19937_64& random, Split split) {
  Case c{.sequence = between(random, 1, 12), .seed = random(), .split = split};
  const int64_t documents = between(random, 1, 40);
  for (int64_t i = 0; i < documents; ++i) {
    const int64_t kind = between(random, 0, 9);
    c.lengths.push_back(kind == 0   ? 0
                        : kind == 1 ? 1
                        : kind == 2 ? between(random, 2 * c.sequence, 5 * c.sequence + 3)
                                    : between(random, 1, c.sequence + 2));
  }
  c.lengths.push_back(c.sequence + 1);  // enough for one row
  std::shuffle(c.lengths.begin(), c.lengths.end(), random);
  return c;
}

int64_t total_of(const Case& c) {
  return std::accumulate(c.lengths.begin(), c.lengths.end(), int64_t{0});
}

DataContext context_of(const Case& c, int64_t micro_batch, int64_t world = 1, int64_t rank = 0) {
  DataContext context = stream_context(c.split, micro_batch, c.sequence);
  context.seed = c.seed;
  context.world = world;
  context.rank = rank;
  return context;
}

/// All ranks of a run, each with a loader.
class Ranks {
 public:
  Ranks(const Case& c, int64_t world, int64_t micro_batch, int64_t depth = 0) {
    for (int64_t rank = 0; rank < world; ++rank) {
      const DataContext context = context_of(c, micro_batch, world, rank);
      loaders_.push_back(std::make_unique<dsv3::Loader>(
          std::make_shared<PackedStream>(std::make_shared<NumberedDocuments>(c.lengths), context),
          context, depth));
    }
  }
  /// Returns the rows of `calls` batches of every rank in their global order, or fewer at the end
  /// of the stream, which all ranks must reach in the same call.
  std::vector<Row> read(int64_t calls) {
    std::vector<Row> rows;
    for (int64_t call = 0; call < calls; ++call) {
      size_t ended = 0;
      for (const auto& loader : loaders_) ended += !append_rows(loader->next(), rows);
      if (ended == 0) continue;
      REQUIRE(ended == loaders_.size());
      break;
    }
    return rows;
  }
  void load_state(const dsv3::Json& state) {
    for (const auto& loader : loaders_) loader->load_state(state);
  }
  /// The state of all ranks, which is the same.
  dsv3::Json state() const {
    for (const auto& loader : loaders_) REQUIRE(loader->state() == loaders_[0]->state());
    return loaders_[0]->state();
  }

 private:
  std::vector<std::unique_ptr<dsv3::Loader>> loaders_;
};

/// Computes a stream from its definition, without PackedStream: row n is tokens n T to n T + T of
/// the documents of all epochs, one after the other.
std::vector<Row> rows_by_definition(const Case& c, size_t count) {
  const auto documents = uint64_t(c.lengths.size());
  const bool training = c.split == Split::train;
  const size_t T = size_t(c.sequence), needed = count * T + 1;
  Row tokens, ids;
  for (uint64_t epoch = 0; epoch == 0 || (training && tokens.size() < needed); ++epoch) {
    const Permutation order(documents, training ? c.seed : 0, epoch);
    for (uint64_t place = 0; place < documents; ++place) {
      const int64_t document = int64_t(order(place));
      for (int64_t offset = 0; offset < c.lengths[size_t(document)]; ++offset) {
        tokens.push_back(1000 * (document + 1) + offset);
        ids.push_back(int64_t(epoch * documents + place));
      }
    }
  }
  tokens.resize(needed, 0);  // padding, if the stream ended
  ids.resize(needed, -1);
  std::vector<Row> rows;
  for (size_t n = 0; n < count; ++n) {
    Row& row =
        rows.emplace_back(tokens.begin() + long(n * T), tokens.begin() + long(n * T + T + 1));
    row.insert(row.end(), ids.begin() + long(n * T), ids.begin() + long(n * T + T + 1));
  }
  return rows;
}

/// Runs `property` on random streams. On failure, the seed and the stream are reported.
void for_all(Split split, const std::function<void(const Case&, std::mt19937_64&)>& property) {
  const uint64_t seed = test_seed();
  std::mt19937_64 random(seed);
  for (int number = 0; number < kCases; ++number) {
    const Case c = any_case(random, split);
    std::string lengths;
    for (const int64_t length : c.lengths) lengths += " " + std::to_string(length);
    INFO("DSV3_TEST_SEED=" << seed << ", case " << number << ": sequence " << c.sequence
                           << ", seed " << c.seed << ", documents of" << lengths);
    property(c, random);
  }
}

}  // namespace

TEST_CASE("the training rows of random documents follow the definition, for any number of ranks") {
  for_all(Split::train, [](const Case& c, std::mt19937_64& random) {
    // At least three epochs.
    const int64_t rows = 3 * total_of(c) / c.sequence + 20;
    const auto expected = rows_by_definition(c, size_t(rows));
    for (const int64_t world : kWorlds) {
      const int64_t micro_batch = between(random, 1, 5);
      auto actual = Ranks(c, world, micro_batch).read(rows / (world * micro_batch) + 1);
      REQUIRE(actual.size() >= expected.size());
      actual.resize(expected.size());
      REQUIRE(actual == expected);
    }
  });
}

TEST_CASE("every token of random documents appears exactly once per epoch") {
  for_all(Split::train, [](const Case& c, std::mt19937_64& random) {
    constexpr int64_t kEpochs = 3;
    const int64_t total = total_of(c);
    const int64_t world = kWorlds[size_t(between(random, 0, 2))];
    const auto rows = Ranks(c, world, 2).read(kEpochs * total / (2 * world * c.sequence) + 1);
    Row tokens;  // without each row's last token, which is the next row's first
    for (const Row& row : rows) tokens.insert(tokens.end(), row.begin(), row.begin() + c.sequence);
    REQUIRE(std::ssize(tokens) >= kEpochs * total);
    Row expected;
    for (size_t i = 0; i < c.lengths.size(); ++i)
      for (int64_t offset = 0; offset < c.lengths[i]; ++offset)
        expected.push_back(1000 * int64_t(i + 1) + offset);
    for (int64_t epoch = 0; epoch < kEpochs; ++epoch) {
      Row part(tokens.begin() + epoch * total, tokens.begin() + (epoch + 1) * total);
      std::sort(part.begin(), part.end());
      REQUIRE(part == expected);
    }
  });
}

TEST_CASE("a state taken at any point continues exactly with any number of ranks") {
  for_all(Split::train, [](const Case& c, std::mt19937_64& random) {
    const int64_t world = kWorlds[size_t(between(random, 0, 2))],
                  micro_batch = between(random, 1, 4);
    Ranks before(c, world, micro_batch, between(random, 0, 3));
    const int64_t calls = between(random, 0, 2 * total_of(c) / c.sequence + 3);
    const auto first = std::ssize(before.read(calls));
    REQUIRE(first == calls * world * micro_batch);
    const std::string state = before.state().dump();
    constexpr int64_t kRows = 48;
    auto expected = rows_by_definition(c, size_t(first + kRows));
    expected.erase(expected.begin(), expected.begin() + first);
    for (const int64_t new_world : kWorlds) {
      const int64_t new_micro_batch = between(random, 1, 5), per_call = new_world * new_micro_batch;
      Ranks after(c, new_world, new_micro_batch, between(random, 0, 3));
      after.read(between(random, 0, 3));  // load_state() must discard this progress
      after.load_state(dsv3::Json::parse(state));
      auto actual = after.read((kRows + per_call - 1) / per_call);
      actual.resize(size_t(kRows));
      REQUIRE(actual == expected);
      if (kRows % per_call == 0) {
        // The state depends only on the position in the stream.
        Ranks straight(c, 1, 1);
        straight.read(first + kRows);
        REQUIRE(after.state() == straight.state());
      }
    }
  });
}

TEST_CASE("repeated changes of the number of ranks in one stream lose and repeat no row") {
  for_all(Split::train, [](const Case& c, std::mt19937_64& random) {
    std::vector<Row> rows;
    dsv3::Json state;
    for (int part = 0; part < 8; ++part) {
      Ranks ranks(c, kWorlds[size_t(between(random, 0, 2))], between(random, 1, 3),
                  between(random, 0, 2));
      if (!state.is_null()) ranks.load_state(state);
      for (Row& row : ranks.read(between(random, 1, 5))) rows.push_back(std::move(row));
      state = dsv3::Json::parse(ranks.state().dump());
    }
    REQUIRE(rows == rows_by_definition(c, rows.size()));
  });
}

TEST_CASE("a random validation stream ends after all its targets, for any number of ranks") {
  for_all(Split::validation, [](const Case& c, std::mt19937_64& random) {
    const int64_t total = total_of(c);
    for (const int64_t world : kWorlds) {
      const int64_t per_call = world * between(random, 1, 5);
      Ranks ranks(c, world, per_call / world, between(random, 0, 2));
      const auto rows = ranks.read(1'000'000);
      // Every batch has at least one pair of tokens, so that padding is at most one batch long.
      const int64_t filled = (total - 2) / c.sequence + 1;
      REQUIRE(std::ssize(rows) == (filled + per_call - 1) / per_call * per_call);
      REQUIRE(rows == rows_by_definition(c, rows.size()));
      REQUIRE(ranks.read(2).empty());
    }
  });
}

TEST_CASE("a validation stream can be resumed with any number of ranks") {
  for_all(Split::validation, [](const Case& c, std::mt19937_64& random) {
    Ranks before(c, 1, 1);
    const int64_t filled = (total_of(c) - 2) / c.sequence + 1;
    const int64_t first = between(random, 0, filled);
    REQUIRE(std::ssize(before.read(first)) == first);
    Ranks after(c, 4, 2);
    after.load_state(before.state());
    const auto rows = after.read(1'000'000);
    REQUIRE(std::ssize(rows) == (filled - first + 7) / 8 * 8);
    auto expected = rows_by_definition(c, size_t(first) + rows.size());
    expected.erase(expected.begin(), expected.begin() + first);
    REQUIRE(rows == expected);
  });
}

TEST_CASE("documents without tokens change no row") {
  for_all(Split::train, [](const Case& c, std::mt19937_64&) {
    Case empties = c;
    std::fill(empties.lengths.begin(), empties.lengths.end() - 1, 0);
    empties.lengths.back() = c.sequence + 1;
    const auto rows = Ranks(empties, 2, 2).read(10);
    const int64_t document = std::ssize(empties.lengths);
    for (size_t n = 0; n < rows.size(); ++n)
      for (size_t t = 0; t <= size_t(c.sequence); ++t)
        REQUIRE(rows[n][t] ==
                1000 * document + int64_t(n * size_t(c.sequence) + t) % (c.sequence + 1));
  });
}

TEST_CASE("a permutation is a bijection for every size up to 1200") {
  const uint64_t seed = test_seed();
  INFO("DSV3_TEST_SEED=" << seed);
  for (uint64_t count = 1; count <= 1200; ++count) {
    const Permutation order(count, seed, count % 5);
    std::vector<bool> found(count);
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t index = order(i);
      REQUIRE(index < count);
      REQUIRE_FALSE(found[index]);
      found[index] = true;
    }
  }
}

TEST_CASE("permutations of different seeds and epochs are unrelated") {
  // Two unrelated permutations agree at one position on average, with a variance of 1.
  constexpr uint64_t kCount = 500, kSeeds = 12, kEpochs = 12;
  const uint64_t first = test_seed();
  INFO("DSV3_TEST_SEED=" << first);
  std::vector<std::vector<uint64_t>> orders;
  for (uint64_t seed = first; seed < first + kSeeds; ++seed)
    for (uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
      const Permutation permutation(kCount, seed, epoch);
      for (auto& order = orders.emplace_back(); order.size() < kCount;)
        order.push_back(permutation(order.size()));
    }
  int64_t pairs = 0, agreements = 0;
  for (size_t a = 0; a < orders.size(); ++a)
    for (size_t b = 0; b < a; ++b, ++pairs)
      for (size_t i = 0; i < kCount; ++i) agreements += orders[a][i] == orders[b][i];
  const double mean = double(agreements) / double(pairs);
  CHECK(std::abs(mean - 1) < 6 / std::sqrt(double(pairs)));  // six standard deviations
}

TEST_CASE("the splits of random text are disjoint and complete, and end every document with eos") {
  const uint64_t seed = test_seed();
  std::mt19937_64 random(seed);
  const auto tokenizer = dsv3::test::make_built<dsv3::Tokenizer>(dsv3::Kind::tokenizer, "bytes", {},
                                                                 dsv3::TokenizerContext{});
  for (int number = 0; number < 6; ++number) {
    INFO("DSV3_TEST_SEED=" << seed << ", case " << number);
    TemporaryFolder folder;
    std::string corpus;
    std::multiset<std::string> expected;
    for (int64_t i = 0; i < 80; ++i) {
      // Some documents are equal, which must put them into the same split.
      std::string text = "n" + std::to_string(between(random, 0, 60)) +
                         std::string(size_t(between(random, 0, 3) * 7), 'x');
      corpus += text + "\n" + std::string(size_t(between(random, 1, 3)), '\n');
      expected.insert(std::move(text));
    }
    put(folder / "corpus.txt", corpus);
    DataContext context = stream_context(Split::train, 1, between(random, 3, 20));
    context.validation_share = 0.1 * double(between(random, 2, 8));
    context.tokenizer = tokenizer;
    std::multiset<std::string> found;
    std::vector<std::set<std::string>> splits;
    for (const Split split : {Split::train, Split::validation}) {
      context.split = split;
      const auto data = dsv3::test::make_built<dsv3::Data>(
          dsv3::Kind::data, "text", {{"path", (folder / "corpus.txt").string()}}, context);
      // Document ids count the documents, so the second epoch begins at the number of documents.
      const int64_t documents = data->state().at("documents").get<int64_t>();
      std::map<int64_t, std::vector<int32_t>> texts;
      const auto add = [&](const Row& row, size_t t) {
        const int64_t id = row[row.size() / 2 + t];
        if (id >= 0) texts[id].push_back(int32_t(row[t]));
      };
      std::vector<Row> rows;
      while (texts.empty() || texts.rbegin()->first < documents) {
        REQUIRE(rows.size() < 10'000);  // the corpus fills fewer
        const size_t last = rows.empty() ? 0 : rows.back().size() / 2 - 1;
        if (!append_rows(data->next(), rows)) {
          add(rows.back(), last);  // no further row starts with this token
          break;
        }
        for (size_t t = 0; t + 1 < rows.back().size() / 2; ++t) add(rows.back(), t);
      }
      auto& texts_of_split = splits.emplace_back();
      for (auto& [id, tokens] : texts) {
        if (id >= documents) break;
        REQUIRE(tokens.back() == tokenizer->eos_id());
        tokens.pop_back();
        REQUIRE(std::count(tokens.begin(), tokens.end(), tokenizer->eos_id()) == 0);
        const std::string text = tokenizer->decode(tokens);
        found.insert(text);
        texts_of_split.insert(text);
      }
    }
    CHECK(found == expected);
    for (const std::string& text : splits[0]) CHECK_FALSE(splits[1].contains(text));
  }
}
