// Promises of data plugins.
#include <set>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include <dsv3/sdk/data.h>

#include "conformance/suite.h"

namespace dsv3::conformance {
namespace {

constexpr int64_t kLength = 16, kVocab = 257;

// A byte a token and an end-of-text id, so that the checks need no other plugin.
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

DataContext context(Split split = Split::train) {
  DataContext made;
  made.split = split;
  made.micro_batch = 4;
  made.sequence = kLength;
  made.seed = 1;
  made.vocab = kVocab;
  made.validation_share = 0.5;  // a handful of documents is enough
  made.tokenizer = std::make_shared<ByteTokenizer>();
  return made;
}

// One row as numbers, document ids behind the tokens; ids count from 0 in each row, because only
// where they change has a meaning.
using Row = std::vector<int64_t>;

std::vector<Row> rows_of(const Batch& batch, const DataContext& of) {
  require(batch.tokens.defined(), "next() gives an undefined batch in a training stream");
  const std::vector<int64_t> sizes{of.micro_batch, of.sequence + 1};
  require(batch.tokens.sizes() == sizes && batch.tokens.scalar_type() == at::kLong &&
              batch.tokens.device().is_cpu(),
          "tokens are not int64 [micro_batch, sequence + 1] on the CPU");
  require(batch.tokens.ge(0).all().item<bool>() && batch.tokens.lt(of.vocab).all().item<bool>(),
          "a token is not in 0 .. " + std::to_string(of.vocab - 1));
  const bool has_ids = batch.document_ids.defined();
  if (has_ids)
    require(batch.document_ids.sizes() == sizes && batch.document_ids.scalar_type() == at::kLong,
            "document_ids are not int64 [micro_batch, sequence + 1]");
  std::vector<Row> rows;
  for (int64_t b = 0; b < of.micro_batch; ++b) {
    Row row;
    for (int64_t t = 0; t <= of.sequence; ++t) row.push_back(batch.tokens[b][t].item<int64_t>());
    int64_t last = 0, shown = 0;
    for (int64_t t = 0; has_ids && t <= of.sequence; ++t) {
      const int64_t id = batch.document_ids[b][t].item<int64_t>();
      if (t > 0 && id != last && id >= 0) ++shown;
      row.push_back(id < 0 ? -1 : shown);
      last = id;
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<Row> read(Data& data, const DataContext& of, int64_t calls) {
  std::vector<Row> rows;
  for (int64_t call = 0; call < calls; ++call)
    for (Row& row : rows_of(data.next(), of)) rows.push_back(std::move(row));
  return rows;
}

// Row `index` of the global stream, seen by this many ranks.
std::vector<Row> global_rows(const Subject& subject, int64_t world, int64_t micro, int64_t count) {
  std::vector<std::shared_ptr<Data>> ranks;
  DataContext of = context();
  of.world = world;
  of.micro_batch = micro;
  for (of.rank = 0; of.rank < world; ++of.rank) ranks.push_back(make<Data>(subject, of));
  std::vector<Row> rows;
  while (static_cast<int64_t>(rows.size()) < count)
    for (const auto& rank : ranks)
      for (Row& row : rows_of(rank->next(), of)) rows.push_back(std::move(row));
  rows.resize(static_cast<size_t>(count));
  return rows;
}

void require_rows(const std::vector<Row>& actual, const std::vector<Row>& expected,
                  const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i)
    require(i < actual.size() && actual[i] == expected[i],
            what + ": row " + std::to_string(i) + " differs");
}

void check_batches(const Subject& subject) {
  const DataContext of = context();
  const auto data = make<Data>(subject, of);
  const std::vector<Row> rows = read(*data, of, 20);
  std::set<Row> different(rows.begin(), rows.end());
  require(different.size() > 1, "80 rows of the training stream are all the same");
  const auto again = make<Data>(subject, of);
  require_rows(read(*again, of, 20), rows, "a second stream of the same seed");
}

void check_ranks(const Subject& subject) {
  const std::vector<Row> wanted = global_rows(subject, 1, 4, 64);
  for (const auto& [world, micro] :
       {std::pair<int64_t, int64_t>{2, 4}, {4, 4}, {1, 1}, {2, 2}, {4, 1}, {1, 8}})
    require_rows(global_rows(subject, world, micro, 64), wanted,
                 "the global stream on " + std::to_string(world) + " ranks with micro-batches of " +
                     std::to_string(micro));
}

void check_resume(const Subject& subject) {
  const DataContext of = context();
  for (const int64_t calls : {0, 1, 7, 30}) {
    const auto data = make<Data>(subject, of);
    read(*data, of, calls);
    const std::string saved = data->state().dump();
    require(saved.size() < 65536, "state() has " + std::to_string(saved.size()) +
                                      " bytes; it should say where the stream is, not what it has");
    const std::vector<Row> wanted = read(*data, of, 8);
    const auto resumed = make<Data>(subject, of);
    resumed->load_state(nlohmann::json::parse(saved));
    require_rows(read(*resumed, of, 8), wanted,
                 "a stream that goes on after " + std::to_string(calls) + " batches");
    // On other ranks and micro-batches, too.
    DataContext half = of;
    half.world = 2;
    half.micro_batch = 2;
    std::vector<std::shared_ptr<Data>> ranks;
    for (half.rank = 0; half.rank < 2; ++half.rank) {
      ranks.push_back(make<Data>(subject, half));
      ranks.back()->load_state(nlohmann::json::parse(saved));
    }
    std::vector<Row> rows;
    for (int64_t call = 0; call < 8; ++call)
      for (const auto& rank : ranks)
        for (Row& row : read(*rank, half, 1)) rows.push_back(std::move(row));
    require_rows(
        rows, wanted,
        "a stream that goes on with 2 ranks after " + std::to_string(calls) + " batches of one");
  }
}

std::vector<Row> validation_rows(const Subject& subject, const DataContext& of) {
  const auto data = make<Data>(subject, of);
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
  DataContext other = of;
  other.seed = 2;
  require_rows(validation_rows(subject, other), rows,
               "the validation stream under another seed of the order");
  std::set<size_t> batches;
  other = of;
  other.world = 2;
  for (other.rank = 0; other.rank < 2; ++other.rank)
    batches.insert(validation_rows(subject, other).size());
  require(batches.size() == 1, "two ranks get different numbers of validation batches");
}

void check_memory(const Subject& subject) {
  const DataContext of = context();
  const auto data = make<Data>(subject, of);
  read(*data, of, 200);
  require_steady_memory([&] { read(*data, of, 5); });
}

}  // namespace

std::vector<Check> data_checks() {
  return {
      {"batches", "gives rows of valid tokens, the same ones for the same seed", check_batches},
      {"ranks", "has one global order of rows on 1, 2 and 4 ranks and for any micro-batch",
       check_ranks},
      {"resume", "goes on from a saved state at any batch, on other ranks too", check_resume},
      {"validation", "gives the same finite validation rows each time", check_validation},
      {"memory", "gives its memory back", check_memory},
  };
}

}  // namespace dsv3::conformance
