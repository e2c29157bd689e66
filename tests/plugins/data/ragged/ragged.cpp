// Components for tests of training: rows with very different numbers of targets, and a positional
// encoding that makes chosen rows NaN.
#include <algorithm>
#include <limits>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include <dsv3/sdk/data.h>
#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/position.h>

namespace {

struct RaggedOptions {
  int64_t longest = 6;
  int64_t whole_every = 0;
  bool padding = true;
  int64_t validation_rows = 8;
  static void describe(dsv3::OptionSchema<RaggedOptions>& s) {
    s.add("longest", &RaggedOptions::longest, "largest number of tokens in a document").min(1);
    s.add("whole_every", &RaggedOptions::whole_every,
          "every n-th training row is one document without padding; 0 = none")
        .min(0);
    s.add("padding", &RaggedOptions::padding, "end rows with padding");
    s.add("validation_rows", &RaggedOptions::validation_rows, "number of validation rows").min(1);
  }
};

/// Row n is a function of (seed, split, n): short documents, then padding. Every fifth row, from
/// row 2 on, is only padding, unless `padding` is false.
class Ragged final : public dsv3::Data {
 public:
  using Options = RaggedOptions;
  Ragged(const RaggedOptions& options, const dsv3::DataContext& context)
      : options_(options), context_(context) {}

  dsv3::Batch next() override {
    if (!training() && rows_ >= options_.validation_rows) return {};
    const int64_t B = context_.micro_batch, width = context_.sequence + 1;
    dsv3::Batch batch{at::zeros({B, width}, at::kLong), at::full({B, width}, -1, at::kLong)};
    for (int64_t i = 0; i < B; ++i) {
      const int64_t row = rows_ + context_.rank * B + i;
      if (training() || row < options_.validation_rows)
        fill(uint64_t(row), batch.tokens.mutable_data_ptr<int64_t>() + i * width,
             batch.document_ids.mutable_data_ptr<int64_t>() + i * width);
    }
    rows_ += B * context_.world;
    return batch;
  }
  nlohmann::json state() const override { return {{"rows", rows_}}; }
  void load_state(const nlohmann::json& state) override { rows_ = state.at("rows"); }

 private:
  bool training() const { return context_.split == dsv3::Split::train; }

  void fill(uint64_t row, int64_t* tokens, int64_t* ids) const {
    const uint64_t width = uint64_t(context_.sequence) + 1, split = training() ? 1 : 2;
    const auto draw = [&](uint64_t what, uint64_t limit) {
      return dsv3::random_bits({training() ? context_.seed : 0, split, row, what}) % limit;
    };
    const auto every = uint64_t(options_.whole_every);
    const bool whole = training() && every > 0 && row % every == every - 1;
    const uint64_t filled = whole || !options_.padding ? width
                            : row % 5 == 2             ? 0
                                                       : draw(0, width + 1);
    uint64_t document = 0, end = 0;
    for (uint64_t t = 0; t < filled; ++t) {
      if (t == end) {
        end = whole ? width : t + 1 + draw(1000 + t, uint64_t(options_.longest));
        ++document;
      }
      tokens[t] = int64_t(draw(1 + t, uint64_t(context_.vocab)));
      ids[t] = int64_t(document);
    }
  }

  RaggedOptions options_;
  dsv3::DataContext context_;
  int64_t rows_ = 0;  // number of rows returned by all ranks
};

struct CliffOptions {
  int64_t edge = 8;
  static void describe(dsv3::OptionSchema<CliffOptions>& s) {
    s.add("edge", &CliffOptions::edge, "first position in a document that becomes NaN").min(1);
  }
};

/// Encodes no position, but makes queries NaN from a position on, so that the data determines which
/// steps are not finite.
class Cliff final : public dsv3::Position {
 public:
  using Options = CliffOptions;
  Cliff(const CliffOptions& options, const dsv3::PositionContext&) : edge_(options.edge) {}

  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                           const at::Tensor& positions) const override {
    const at::Tensor beyond = positions.ge(edge_).unsqueeze(2).unsqueeze(3);
    return {q.masked_fill(beyond, std::numeric_limits<double>::quiet_NaN()), k};
  }

 private:
  int64_t edge_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.data<Ragged>("ragged", "Test data with padding and unequal numbers of targets");
  registrar.position<Cliff>("cliff", "Test encoding that makes late positions NaN");
}
