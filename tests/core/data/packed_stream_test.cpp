// Tests the content of packed streams, how they resume, and their row order across ranks.
#include <algorithm>
#include <numeric>
#include <set>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include <dsv3/sdk/error.h>

#include "core/data/documents.h"
#include "core/support/temporary_folder.h"
#include "support/built_plugins.h"

using dsv3::PackedStream;
using dsv3::Split;

namespace {

const std::vector<int64_t> kLengths{5, 1, 12, 3, 30, 2, 9, 17, 1, 4, 8, 21};

std::shared_ptr<dsv3::Documents> numbered() {
  return std::make_shared<NumberedDocuments>(kLengths);
}

std::vector<int64_t> whole_document(int64_t document) {
  std::vector<int64_t> tokens(static_cast<size_t>(kLengths[static_cast<size_t>(document)]));
  std::iota(tokens.begin(), tokens.end(), 1000 * (document + 1));
  return tokens;
}

/// Reads from the ranks in turn until they have returned `count` rows of the global stream.
std::vector<Row> global_rows(std::vector<std::unique_ptr<PackedStream>>& ranks, size_t count) {
  std::vector<Row> rows;
  while (rows.size() < count)
    for (const auto& rank : ranks) REQUIRE(append_rows(rank->next(), rows));
  rows.resize(count);
  return rows;
}

std::vector<std::unique_ptr<PackedStream>> make_ranks(int64_t world, int64_t micro_batch,
                                                      const nlohmann::json& state = {}) {
  std::vector<std::unique_ptr<PackedStream>> ranks;
  dsv3::DataContext context = stream_context(Split::train, micro_batch, 6);
  context.world = world;
  for (context.rank = 0; context.rank < world; ++context.rank) {
    ranks.push_back(std::make_unique<PackedStream>(numbered(), context));
    if (!state.is_null()) ranks.back()->load_state(state);
  }
  return ranks;
}

dsv3::ExitCode code_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const dsv3::Error& error) {
    return error.code();
  }
  FAIL("nothing was thrown");
  return {};
}

}  // namespace

TEST_CASE("every training epoch contains all tokens of all documents exactly once and in order") {
  const int64_t total = std::accumulate(kLengths.begin(), kLengths.end(), int64_t{0});
  const int64_t sequence = GENERATE(1, 6, 50);
  const int64_t micro_batch = GENERATE(1, 3);
  PackedStream stream(numbered(), stream_context(Split::train, micro_batch, sequence));
  const int64_t calls = 3 * total / (micro_batch * sequence) + 1;
  const auto documents = documents_of(read_rows(stream, calls));
  REQUIRE(documents.size() >= 3 * kLengths.size());
  std::vector<std::vector<int64_t>> orders;
  for (size_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> order;
    for (size_t i = 0; i < kLengths.size(); ++i) {
      const auto& document = documents[epoch * kLengths.size() + i];
      order.push_back(document.front() / 1000 - 1);
      REQUIRE(document == whole_document(order.back()));
    }
    orders.push_back(order);
    std::sort(order.begin(), order.end());
    for (size_t i = 0; i < order.size(); ++i) REQUIRE(order[i] == int64_t(i));
  }
  CHECK(orders[0] != orders[1]);
  CHECK(orders[1] != orders[2]);
}

TEST_CASE("validation is one pass over all documents, padded to whole batches") {
  for (const int64_t micro_batch : {1, 4}) {
    PackedStream stream(numbered(), stream_context(Split::validation, micro_batch, 8));
    const auto rows = read_rows(stream, 1000);
    CHECK_FALSE(stream.next().tokens.defined());
    CHECK(rows.size() % size_t(micro_batch) == 0);
    auto documents = documents_of(rows);
    // A one-token document at the end of the stream has no target, so it does not start a row.
    REQUIRE(documents.size() >= kLengths.size() - 1);
    std::set<int64_t> found;
    for (const auto& document : documents) {
      const int64_t index = document.front() / 1000 - 1;
      CHECK(document == whole_document(index));
      CHECK(found.insert(index).second);
    }
  }
}

TEST_CASE("the seed changes the order of training rows but not of validation rows") {
  for (const Split split : {Split::train, Split::validation}) {
    auto context = stream_context(split, 2, 8);
    PackedStream stream(numbered(), context), same(numbered(), context);
    context.seed += 1;
    PackedStream other(numbered(), context);
    const auto rows = read_rows(stream, 5);
    CHECK(rows == read_rows(same, 5));
    CHECK((rows == read_rows(other, 5)) == (split == Split::validation));
  }
}

TEST_CASE("a stream resumed from its saved state continues unchanged") {
  const auto context = stream_context(Split::train, 2, 6);
  for (const int64_t calls : {0, 1, 2, 9, 40}) {
    PackedStream stream(numbered(), context);
    read_rows(stream, calls);
    const std::string saved = stream.state().dump();
    PackedStream resumed(numbered(), context);
    read_rows(resumed, 3);  // load_state() must discard this progress
    resumed.load_state(nlohmann::json::parse(saved));
    CHECK(resumed.state() == stream.state());
    CHECK(read_rows(resumed, 30) == read_rows(stream, 30));
    CHECK(resumed.state() == stream.state());
  }
}

TEST_CASE("the global row order does not depend on the number of ranks or the micro-batch size") {
  constexpr size_t kRows = 60;
  auto single = make_ranks(1, 1);
  const auto expected = global_rows(single, kRows);
  for (const auto& [world, micro_batch] :
       {std::pair<int64_t, int64_t>{1, 4}, {2, 1}, {2, 3}, {3, 2}, {4, 5}}) {
    auto ranks = make_ranks(world, micro_batch);
    CHECK(global_rows(ranks, kRows) == expected);
    for (const auto& rank : ranks) CHECK(rank->state() == ranks[0]->state());
  }
}

TEST_CASE("a saved state can be resumed with a different number of ranks or micro-batch size") {
  auto single = make_ranks(1, 4);
  global_rows(single, 12);
  const nlohmann::json state = single[0]->state();
  const auto expected = global_rows(single, 24);
  for (const auto& [world, micro_batch] : {std::pair<int64_t, int64_t>{1, 1}, {2, 2}, {3, 4}}) {
    auto ranks = make_ranks(world, micro_batch, state);
    CHECK(global_rows(ranks, 24) == expected);
  }
}

TEST_CASE("a saved state is rejected if it is malformed, or if the documents or the seed differ") {
  const auto context = stream_context(Split::train, 1, 6);
  PackedStream stream(numbered(), context);
  read_rows(stream, 4);
  const nlohmann::json state = stream.state();
  const auto rejected = [&](const nlohmann::json& changed) {
    return code_of([&] { stream.load_state(changed); }) == dsv3::ExitCode::data;
  };
  for (const char* key : {"rows", "epoch", "document", "offset", "documents"}) {
    nlohmann::json without = state, negative = state;
    without.erase(key);
    negative[key] = -1;
    CHECK(rejected(without));
    CHECK(rejected(negative));
  }
  for (const auto& [key, value] : {std::pair<const char*, nlohmann::json>{"documents", 11},
                                   {"source", "other"},
                                   {"seed", 8},
                                   {"document", 13},
                                   {"offset", 31}}) {
    nlohmann::json changed = state;
    changed["read"] = "0";
    changed[key] = value;
    CHECK(rejected(changed));
  }
  CHECK(rejected(nlohmann::json(7)));
  CHECK(rejected(nlohmann::json()));
  CHECK(stream.state() == state);  // a rejected state leaves the stream unchanged
}

TEST_CASE("a stream resumes if only documents that it had not read have changed") {
  const auto context = stream_context(Split::train, 1, 6);
  const std::vector<int64_t> lengths(20, 10);
  const auto documents = [&](std::vector<uint64_t> hashes, const std::string& fingerprint) {
    return std::make_shared<NumberedDocuments>(lengths, fingerprint, std::move(hashes));
  };
  std::vector<uint64_t> hashes(lengths.size());
  std::iota(hashes.begin(), hashes.end(), 100);
  PackedStream stream(documents(hashes, "old"), context);
  const std::vector<Row> rows = read_rows(stream, 4);
  const nlohmann::json state = stream.state();
  std::set<int64_t> read;
  for (const std::vector<int64_t>& document : documents_of(rows))
    read.insert(document[0] / 1000 - 1);
  REQUIRE(read.size() == 3);
  for (int64_t changed = 0; changed < std::ssize(lengths); ++changed) {
    std::vector<uint64_t> corrected = hashes;
    corrected[size_t(changed)] = 7;
    PackedStream resumed(documents(corrected, "new"), context);
    if (read.contains(changed))
      CHECK(code_of([&] { resumed.load_state(state); }) == dsv3::ExitCode::data);
    else
      CHECK_NOTHROW(resumed.load_state(state));
  }
  read_rows(stream, 60);
  PackedStream later(documents(hashes, "new"), context);
  CHECK(stream.state()["epoch"] > 0);
  CHECK(code_of([&] { later.load_state(stream.state()); }) == dsv3::ExitCode::data);
}

TEST_CASE(
    "if the text is too short for one row, the error states its number of tokens and documents") {
  const auto few = std::make_shared<NumberedDocuments>(std::vector<int64_t>{3, 3});
  CHECK_NOTHROW(PackedStream(few, stream_context(Split::train, 1, 5)));
  CHECK_THROWS_WITH(PackedStream(few, stream_context(Split::train, 1, 6)),
                    Catch::Contains("6 tokens in 2 documents of numbers") &&
                        Catch::Contains("sequence 6 needs 7"));
  const auto none = std::make_shared<NumberedDocuments>(std::vector<int64_t>{});
  CHECK(code_of([&] { PackedStream(none, stream_context(Split::train, 1, 6)); }) ==
        dsv3::ExitCode::data);
  CHECK(code_of([&] { PackedStream(none, stream_context(Split::validation, 1, 6)); }) ==
        dsv3::ExitCode::data);
  auto context = stream_context(Split::validation, 1, 6);
  context.validation_share = 0;
  PackedStream empty(none, context);
  CHECK_FALSE(empty.next().tokens.defined());
}

TEST_CASE("each document in a text file belongs to exactly one split") {
  TemporaryFolder folder;
  constexpr double kShare = 0.3;
  std::multiset<std::string> train, validation;
  std::string corpus;
  for (int i = 0; i < 120; ++i) {
    const std::string text = "document " + std::to_string(i) + std::string(size_t(i % 17), '.');
    corpus += text + "\n\n";
    (dsv3::held_out(dsv3::document_hash(text), kShare) ? validation : train).insert(text);
  }
  put(folder / "corpus.txt", corpus);
  REQUIRE(validation.size() > 10);
  for (const Split split : {Split::train, Split::validation}) {
    const auto& expected = split == Split::train ? train : validation;
    auto context = stream_context(split, 1, 16);
    context.validation_share = kShare;
    context.tokenizer = dsv3::test::make_built<dsv3::Tokenizer>(dsv3::Kind::tokenizer, "bytes", {},
                                                                dsv3::TokenizerContext{});
    const auto data = dsv3::test::make_built<dsv3::Data>(
        dsv3::Kind::data, "text", {{"path", (folder / "corpus.txt").string()}}, context);
    size_t tokens = 0;
    for (const std::string& text : expected) tokens += text.size() + 1;  // the end-of-text id
    auto documents = documents_of(read_rows(*data, int64_t(tokens / 16) + 1));
    REQUIRE(documents.size() >= expected.size());
    documents.resize(expected.size());  // the remaining documents belong to the next epoch
    std::multiset<std::string> found;
    for (auto& document : documents) {
      CHECK(document.back() == context.tokenizer->eos_id());
      document.pop_back();
      found.insert(
          context.tokenizer->decode(std::vector<int32_t>(document.begin(), document.end())));
    }
    CHECK(found == expected);
  }
}
