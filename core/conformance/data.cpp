// Promises of data plugins.
#include <set>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include <dsv3/sdk/data.h>

#include "conformance/suite.h"

namespace dsv3::conformance {
namespace {

constexpr int64_t kLength = 16, kVocab = 257;

// One token per byte and an end-of-text id, so that the checks need no other plugin.
class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const unsigned char byte : text) ids.push_back(byte);
    return ids;
  }
  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) text += token_bytes(id);
    return text;
  }
  std::string token_bytes(int32_t id) const override {
    return id < 256 ? std::string(1, static_cast<char>(id)) : "<|endoftext|>";
  }
  int64_t vocab_size() const override { return kVocab; }
  int32_t eos_id() const override { return 256; }
  std::string digest() const override { return "conformance-bytes"; }
};

DataContext context(Split split = Split::train, int64_t world = 1, int64_t micro_batch = 4) {
  DataContext context;
  context.split = split;
  context.world = world;
  context.micro_batch = micro_batch;
  context.sequence = kLength;
  context.seed = 1;
  context.vocab = kVocab;
  context.validation_share = 0.5;  // a handful of documents is enough
  context.tokenizer = std::make_shared<ByteTokenizer>();
  return context;
}

// The tokens of one row, then its document ids. Ids count from 0 in each row, because only their
// changes have a meaning.
using Row = std::vector<int64_t>;

std::vector<Row> rows_of(const Batch& batch, const DataContext& of) {
  require(batch.tokens.defined(), "next() returns an undefined batch in a training stream");
  const std::vector<int64_t> sizes{of.micro_batch, of.sequence + 1};
  require(batch.tokens.sizes() == sizes && batch.tokens.scalar_type() == at::kLong &&
              batch.tokens.device().is_cpu(),
          "tokens are not int64 [micro_batch, sequence + 1] on the CPU");
  require(batch.tokens.ge(0).all().item<bool>() && batch.tokens.lt(of.vocab).all().item<bool>(),
          "a token is not in 0 .. ", of.vocab - 1);
  const bool has_ids = batch.document_ids.defined();
  require(!has_ids || (batch.document_ids.sizes() == sizes &&
                       batch.document_ids.scalar_type() == at::kLong),
          "document_ids are not int64 [micro_batch, sequence + 1]");
  std::vector<Row> rows;
  for (int64_t b = 0; b < of.micro_batch; ++b) {
    Row row;
    for (int64_t t = 0; t <= of.sequence; ++t) row.push_back(batch.tokens[b][t].item<int64_t>());
    int64_t previous = 0, document = 0;
    for (int64_t t = 0; has_ids && t <= of.sequence; ++t) {
      const int64_t id = batch.document_ids[b][t].item<int64_t>();
      if (t > 0 && id != previous && id >= 0) ++document;
      row.push_back(id < 0 ? -1 : document);
      previous = id;
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

// The streams of all ranks of a run.
class Streams {
 public:
  /// `world` and `micro_batch` of `of` are the run's.
  Streams(const Subject& subject, DataContext of) : of_(of) {
    for (of.rank = 0; of.rank < of.world; ++of.rank) ranks_.push_back(construct<Data>(subject, of));
  }
  Data& first() { return *ranks_.front(); }
  void load_state(const std::string& state) {
    for (const auto& rank : ranks_) rank->load_state(nlohmann::json::parse(state));
  }
  /// The next `count` rows of the global stream.
  std::vector<Row> read(int64_t count) {
    std::vector<Row> rows;
    while (int64_t(rows.size()) < count)
      for (const auto& rank : ranks_)
        for (Row& row : rows_of(rank->next(), of_)) rows.push_back(std::move(row));
    rows.resize(size_t(count));
    return rows;
  }

 private:
  DataContext of_;
  std::vector<std::shared_ptr<Data>> ranks_;
};

void require_rows(const std::vector<Row>& actual, const std::vector<Row>& expected,
                  const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i)
    require(i < actual.size() && actual[i] == expected[i], what, ": row ", i, " differs");
}

void check_batches(const Subject& subject) {
  const std::vector<Row> rows = Streams(subject, context()).read(80);
  require(std::set<Row>(rows.begin(), rows.end()).size() > 1,
          "80 rows of the training stream are all the same");
  require_rows(Streams(subject, context()).read(80), rows, "a second stream of the same seed");
}

void check_ranks(const Subject& subject) {
  const std::vector<Row> expected = Streams(subject, context()).read(64);
  for (const auto& [world, micro] :
       {std::pair<int64_t, int64_t>{2, 4}, {4, 4}, {1, 1}, {2, 2}, {4, 1}, {1, 8}})
    require_rows(Streams(subject, context(Split::train, world, micro)).read(64), expected,
                 c10::str("the global stream on ", world, " ranks with micro-batches of ", micro));
}

void check_resume(const Subject& subject) {
  for (const int64_t batches : {0, 1, 7, 30}) {
    Streams straight(subject, context());
    straight.read(4 * batches);
    const std::string state = straight.first().state().dump();
    require(state.size() < 65536, "state() has ", state.size(),
            " bytes; it should hold the stream's position, not its content");
    const std::vector<Row> expected = straight.read(32);
    for (const DataContext& of : {context(), context(Split::train, 2, 2)}) {
      Streams resumed(subject, of);
      resumed.load_state(state);
      require_rows(
          resumed.read(32), expected,
          c10::str("a stream resumed on ", of.world, " rank(s) after ", batches, " batches"));
    }
  }
}

std::vector<Row> validation_rows(const Subject& subject, const DataContext& of) {
  const auto data = construct<Data>(subject, of);
  std::vector<Row> rows;
  for (int64_t call = 0; call < 100'000; ++call) {
    const Batch batch = data->next();
    if (!batch.tokens.defined()) return rows;
    for (Row& row : rows_of(batch, of)) rows.push_back(std::move(row));
  }
  throw Violation("the validation stream does not end");
}

void check_validation(const Subject& subject) {
  const DataContext of = context(Split::validation);
  const std::vector<Row> rows = validation_rows(subject, of);
  require_rows(validation_rows(subject, of), rows, "a second pass over the validation stream");
  DataContext other_seed = of;
  other_seed.seed = 2;
  require_rows(validation_rows(subject, other_seed), rows,
               "the validation stream under another seed of the order");
  std::set<size_t> batches;
  DataContext rank = context(Split::validation, 2);
  for (rank.rank = 0; rank.rank < 2; ++rank.rank)
    batches.insert(validation_rows(subject, rank).size());
  require(batches.size() == 1, "two ranks get different numbers of validation batches");
}

void check_memory(const Subject& subject) {
  Streams streams(subject, context());
  streams.read(800);
  require_steady_memory([&] { streams.read(20); });
}

}  // namespace

std::vector<Check> data_checks() {
  return {
      {"batches", "returns rows of valid tokens, the same ones for the same seed", check_batches},
      {"ranks", "has one global order of rows on 1, 2 and 4 ranks and for any micro-batch",
       check_ranks},
      {"resume", "resumes from a saved state at any batch, on other ranks too", check_resume},
      {"validation", "returns the same finite validation rows each time", check_validation},
      {"memory", "frees its memory", check_memory}};
}

}  // namespace dsv3::conformance
