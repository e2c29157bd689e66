#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

// Validation uses the same document order for every train.seed, so that runs can be compared.
constexpr uint64_t kValidationOrder = 0;

uint64_t order_seed(const DataContext& context) {
  return context.split == Split::train ? context.seed : kValidationOrder;
}

void check_context(const DataContext& c) {
  if (c.micro_batch < 1 || c.sequence < 1 || c.world < 1 || c.rank < 0 || c.rank >= c.world)
    throw Error(
        c10::str("a data stream needs micro_batch >= 1, sequence >= 1 and 0 <= rank < world, "
                 "not ",
                 c.micro_batch, ", ", c.sequence, ", rank ", c.rank, " of ", c.world));
}

std::string percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%g %%", share * 100);
  return text;
}

int64_t count_field(const nlohmann::json& state, const char* key) {
  const nlohmann::json value = state.is_object() ? state.value(key, nlohmann::json()) : nullptr;
  if (!value.is_number_integer() || value.get<int64_t>() < 0)
    throw Error(std::string("the saved data position has no valid '") + key +
                    "'; it was written by a different data plugin",
                ExitCode::data);
  return value.get<int64_t>();
}

}  // namespace

Documents::~Documents() = default;

PackedStream::PackedStream(std::shared_ptr<Documents> documents, const DataContext& context)
    : documents_(std::move(documents)),
      context_(context),
      order_(documents_->count(), order_seed(context), 0) {
  check_context(context_);
  check_enough();
}

void PackedStream::check_enough() {
  const int64_t needed = training() ? context_.sequence + 1 : 2;
  if (!training() && context_.validation_share <= 0 && documents_->count() == 0) return;
  int64_t found = 0;
  for (int64_t i = 0; i < documents_->count() && found < needed; ++i)
    found += documents_->length(int64_t(order_(i)));
  if (found >= needed) return;
  const std::string share = percent(context_.validation_share);
  const std::string available =
      c10::str(found, " tokens in ", documents_->count(),
               documents_->count() == 1 ? " document of " : " documents of ", documents_->source());
  if (training())
    throw Error(
        c10::str("too little text for training: ", available,
                 ", but one training row with train.sequence ", context_.sequence, " needs ",
                 needed, " (", share,
                 " of the documents are in the validation split). Provide more text or reduce "
                 "train.sequence"),
        ExitCode::data);
  throw Error(
      "no text for validation: only " + available +
          " are in the validation split (validation.share " + share +
          "). The split takes only whole documents: increase validation.share, or split the "
          "text into more documents",
      ExitCode::data);
}

int64_t PackedStream::document_at(const Cursor& at) {
  if (at.epoch != order_epoch_) {
    order_ = Permutation(documents_->count(), order_seed(context_), at.epoch);
    order_epoch_ = at.epoch;
  }
  return int64_t(order_(at.position));
}

/// Advances `at` by up to `count` tokens. Copies the tokens and their document ids to the output
/// arrays unless these are null. Returns the number of tokens, which is less than `count` only at
/// the end of a validation stream.
int64_t PackedStream::walk(Cursor& at, int64_t count, int64_t* tokens, int64_t* ids) {
  int64_t done = 0;
  while (done < count) {
    if (at.position == documents_->count()) {
      if (!training()) break;
      at = {at.epoch + 1, 0, 0};
    }
    const int64_t document = document_at(at);
    const int64_t length = documents_->length(document);
    const int64_t taken = std::min(length - at.offset, count - done);
    if (tokens && taken > 0) {
      documents_->read(document, at.offset, {tokens + done, size_t(taken)});
      std::fill_n(ids + done, taken, at.epoch * documents_->count() + at.position);
    }
    done += taken;
    at.offset += taken;
    if (at.offset == length) at = {at.epoch, at.position + 1, 0};
  }
  return done;
}

Batch PackedStream::next() {
  const int64_t T = context_.sequence, B = context_.micro_batch;
  Cursor at = cursor_;
  if (!training() && walk(at, 2, nullptr, nullptr) < 2) return {};
  at = cursor_;
  walk(at, context_.rank * B * T, nullptr, nullptr);
  // Rows overlap by one token, so a batch consists of B T + 1 consecutive tokens.
  std::vector<int64_t> tokens(B * T + 1, 0), ids(B * T + 1, -1);
  if (walk(at, B * T, tokens.data(), ids.data()) == B * T) {
    Cursor peek = at;
    walk(peek, 1, &tokens[B * T], &ids[B * T]);
  }
  walk(at, (context_.world - context_.rank - 1) * B * T, nullptr, nullptr);
  cursor_ = at;
  rows_ += B * context_.world;

  Batch batch{at::empty({B, T + 1}, at::kLong), at::empty({B, T + 1}, at::kLong)};
  for (int64_t row = 0; row < B; ++row) {
    std::copy_n(&tokens[row * T], T + 1, batch.tokens.mutable_data_ptr<int64_t>() + row * (T + 1));
    std::copy_n(&ids[row * T], T + 1,
                batch.document_ids.mutable_data_ptr<int64_t>() + row * (T + 1));
  }
  return batch;
}

nlohmann::json PackedStream::state() const {
  return {{"rows", rows_},
          {"epoch", cursor_.epoch},
          {"document", cursor_.position},
          {"offset", cursor_.offset},
          {"documents", documents_->count()},
          {"source", documents_->fingerprint()},
          {"seed", order_seed(context_)}};
}

void PackedStream::load_state(const nlohmann::json& state) {
  const Cursor at{count_field(state, "epoch"), count_field(state, "document"),
                  count_field(state, "offset")};
  const int64_t rows = count_field(state, "rows");
  const int64_t documents = count_field(state, "documents");
  if (documents != documents_->count() ||
      state.value("source", std::string()) != documents_->fingerprint())
    throw Error(
        c10::str(
            "the text or the tokenizer has changed since the data position was saved: there were ",
            documents, " documents, and ", documents_->source(), " now has ", documents_->count(),
            ", or their content differs. Resuming would repeat or skip "
            "text: restore the original text, or start a new run from the checkpoint"),
        ExitCode::data);
  if (state.value("seed", uint64_t{0}) != order_seed(context_))
    throw Error(
        c10::str("the data position was saved with train.seed ",
                 state.value("seed", nlohmann::json()).dump(),
                 ", which determines the document order, but this run uses ", order_seed(context_)),
        ExitCode::data);
  if (at.position > documents || (at.position == documents && at.offset != 0))
    throw Error("the saved data position is past the last document", ExitCode::data);
  if (at.position < documents && at.offset > documents_->length(document_at(at)))
    throw Error("the saved data position is past the end of its document", ExitCode::data);
  cursor_ = at;
  rows_ = rows;
}

}  // namespace dsv3
