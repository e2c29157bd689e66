// Conformance checks for data plugins.
#include <set>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include <dsv3/sdk/data.h>

#include "conformance/suite.h"

namespace dsv3::conformance {
namespace {

constexpr int64_t kLength = 16, kVocab = 257;

// A tokenizer with one token per byte and an end-of-text id, so that the checks need no tokenizer
// plugin.
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
  return {.split = split,
          .world = world,
          .micro_batch = micro_batch,
          .sequence = kLength,
          .seed = 1,
          .vocab = kVocab,
          .validation_share = 0.5,  // a large fraction, because the data under test may have only a
                                    // few documents
          .tokenizer = std::make_shared<ByteTokenizer>()};
}

// A row's tokens, followed by its document ids. The ids are renumbered from 0, because only the
// boundaries between documents matter.
using Row = std::vector<int64_t>;

std::vector<Row> rows_of(const Batch& batch, const DataContext& of) {
  require(batch.tokens.defined(), "next() returns a batch without tokens in a training stream");
  const std::vector<int64_t> sizes{of.micro_batch, of.sequence + 1};
  require(batch.tokens.sizes() == sizes && batch.tokens.scalar_type() == at::kLong &&
              batch.tokens.device().is_cpu(),
          "tokens are not int64 [micro_batch, sequence + 1] on the CPU");
  require(batch.tokens.ge(0).all().item<bool>() && batch.tokens.lt(of.vocab).all().item<bool>(),
          "a token id is outside the range 0 .. ", of.vocab - 1);
  const bool has_ids = batch.document_ids.defined();
  require(!has_ids || (batch.document_ids.sizes() == sizes &&
                       batch.document_ids.scalar_type() == at::kLong),
          "document_ids are not int64 [micro_batch, sequence + 1]");
  std::vector<Row> rows;
  for (int64_t b = 0; b < of.micro_batch; ++b) {
    const auto values = [&](const at::Tensor& tensor) {
      const at::Tensor row = tensor[b].contiguous();
      return Row(row.const_data_ptr<int64_t>(), row.const_data_ptr<int64_t>() + row.numel());
    };
    Row& row = rows.emplace_back(values(batch.tokens));
    if (!has_ids) continue;
    const Row ids = values(batch.document_ids);
    int64_t document = 0;
    for (size_t t = 0; t < ids.size(); ++t) {
      if (t > 0 && ids[t] != ids[t - 1] && ids[t] >= 0) ++document;
      row.push_back(ids[t] < 0 ? -1 : document);
    }
  }
  return rows;
}

// The data streams of all ranks in a run.
struct Streams {
  /// Creates a stream for each rank from 0 to `of.world` - 1; `of.rank` is ignored.
  Streams(const Subject& subject, DataContext of) : context(of) {
    for (of.rank = 0; of.rank < of.world; ++of.rank) ranks.push_back(construct<Data>(subject, of));
  }
  /// Returns the next `count` rows of the global stream, or fewer if a validation stream ends.
  std::vector<Row> read(size_t count) {
    std::vector<Row> rows;
    size_t ended = 0;
    while (rows.size() < count && ended == 0) {
      for (const auto& rank : ranks) {
        const Batch batch = rank->next();
        if (context.split == Split::validation && !batch.tokens.defined())
          ++ended;
        else
          for (Row& row : rows_of(batch, context)) rows.push_back(std::move(row));
      }
      require(ended == 0 || ended == ranks.size(),
              "ranks return different numbers of validation batches");
    }
    rows.resize(std::min(rows.size(), count));
    return rows;
  }

  DataContext context;
  std::vector<std::shared_ptr<Data>> ranks;
};

void require_rows(const std::vector<Row>& actual, const std::vector<Row>& expected,
                  const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i)
    require(i < actual.size() && actual[i] == expected[i], what, ": row ", i, " differs");
}

}  // namespace

void data_checks(const AddCheck& check) {
  check("batches", "returns valid tokens and repeats them for the same seed",
        [](const Subject& subject) {
          const std::vector<Row> rows = Streams(subject, context()).read(80);
          require(std::set<Row>(rows.begin(), rows.end()).size() > 1,
                  "all of the first 80 rows in the training stream are identical");
          require_rows(Streams(subject, context()).read(80), rows,
                       "a second stream with the same seed returns different rows");
        });
  check("ranks", "orders rows independently of world size and micro-batch size",
        [](const Subject& subject) {
          const std::vector<Row> expected = Streams(subject, context()).read(64);
          for (const auto& [world, micro] :
               {std::pair<int64_t, int64_t>{2, 4}, {4, 4}, {1, 1}, {2, 2}, {4, 1}, {1, 8}})
            require_rows(Streams(subject, context(Split::train, world, micro)).read(64), expected,
                         c10::str("the global stream depends on the number of ranks or the "
                                  "micro-batch size (ranks: ",
                                  world, ", micro-batch: ", micro, ")"));
        });
  check("resume", "resumes from saved state on any number of ranks", [](const Subject& subject) {
    for (const int64_t batches : {0, 1, 7, 30}) {
      Streams straight(subject, context());
      straight.read(4 * batches);
      const std::string state = straight.ranks.front()->state().dump();
      require(state.size() < 65536, "state() has ", state.size(),
              " bytes; it should contain the stream's position, not its content");
      const std::vector<Row> expected = straight.read(32);
      for (const DataContext& of : {context(), context(Split::train, 2, 2)}) {
        Streams resumed(subject, of);
        for (const auto& rank : resumed.ranks) rank->load_state(nlohmann::json::parse(state));
        require_rows(resumed.read(32), expected,
                     c10::str("a stream resumed after ", batches,
                              " batches returns different rows (ranks: ", of.world, ")"));
      }
    }
  });
  check("validation", "returns the same finite validation stream each time",
        [](const Subject& subject) {
          constexpr size_t kMost = 400'000;
          DataContext of = context(Split::validation);
          const std::vector<Row> rows = Streams(subject, of).read(kMost);
          require(rows.size() < kMost, "the validation stream does not end");
          require_rows(Streams(subject, of).read(kMost), rows,
                       "a second pass over the validation stream returns different rows");
          of.seed = 2;
          require_rows(Streams(subject, of).read(kMost), rows,
                       "the validation stream depends on the seed");
          Streams(subject, context(Split::validation, 2))
              .read(kMost);  // all ranks must reach the end in the same step
        });
  check("memory", "frees its memory", [](const Subject& subject) {
    Streams streams(subject, context());
    streams.read(800);
    require_steady_memory([&] { streams.read(20); });
  });
}

}  // namespace dsv3::conformance
