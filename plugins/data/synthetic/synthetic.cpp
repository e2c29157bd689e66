#include "synthetic.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/plugin.h>

namespace dsv3::plugins {
namespace {

enum Stream : uint64_t { kRules = 1, kTrain, kValidation };

constexpr uint64_t kFraction = uint64_t{1} << 32;  // probabilities are compared as 32-bit integers

}  // namespace

SyntheticData::SyntheticData(const Options& options, const DataContext& context)
    : options_(options), context_(context) {
  if (context_.vocab < 2)
    throw Error("data/synthetic needs a vocabulary of at least 2 ids; set model.vocab",
                ExitCode::usage);
  options_.symbols = std::min(options_.symbols, context_.vocab);
  spread_ = context_.vocab / options_.symbols;
}

uint64_t SyntheticData::draw(uint64_t random, uint64_t before, uint64_t last) const {
  const uint64_t symbols = static_cast<uint64_t>(options_.symbols);
  const uint64_t low = random % kFraction, high = random / kFraction;
  if (low < static_cast<uint64_t>(options_.noise * kFraction)) return high % symbols;
  const uint64_t choice = high % 4 == 0 ? 1 : 0;
  return random_bits({kRules, before, last, choice}) % symbols;
}

void SyntheticData::fill(int64_t row, int64_t* tokens) const {
  // The seed affects training rows only; validation rows and the rules are fixed.
  const bool training = context_.split == Split::train;
  const uint64_t stream = training ? kTrain : kValidation, seed = training ? context_.seed : 0;
  uint64_t before = 0, last = 0;
  for (int64_t i = 0; i <= context_.sequence; ++i) {
    const uint64_t random =
        random_bits({seed, stream, static_cast<uint64_t>(row), static_cast<uint64_t>(i)});
    const uint64_t symbol = draw(random, before, last);
    tokens[i] = static_cast<int64_t>(symbol) * spread_;
    before = last;
    last = symbol;
  }
}

Batch SyntheticData::next() {
  if (context_.split == Split::validation && rows_ >= options_.validation_rows) return {};
  const int64_t B = context_.micro_batch, width = context_.sequence + 1;
  Batch batch;
  batch.tokens = at::zeros({B, width}, at::kLong);
  const int64_t first = rows_ + context_.rank * B;
  const bool ends = context_.split == Split::validation && first + B > options_.validation_rows;
  if (ends) batch.document_ids = at::zeros({B, width}, at::kLong);
  for (int64_t i = 0; i < B; ++i) {
    if (ends && first + i >= options_.validation_rows)
      // Every rank returns a batch, even if it contains only padding.
      batch.document_ids[i].fill_(-1);
    else
      fill(first + i, batch.tokens.mutable_data_ptr<int64_t>() + i * width);
  }
  rows_ += B * context_.world;
  return batch;
}

nlohmann::json SyntheticData::state() const {
  return {{"rows", rows_}};
}

void SyntheticData::load_state(const nlohmann::json& state) {
  if (!state.is_object() || !state.contains("rows") || !state["rows"].is_number_integer() ||
      state["rows"].get<int64_t>() < 0)
    throw Error("the saved data position was not written by data/synthetic", ExitCode::data);
  rows_ = state["rows"];
}

}  // namespace dsv3::plugins

DSV3_PLUGIN(registrar) {
  registrar.data<dsv3::plugins::SyntheticData>("synthetic",
                                               "Learnable synthetic data, for --debug");
}
