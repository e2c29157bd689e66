#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>

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

/// Compares the documents with the saved `state`. Throws if they have changed, unless those read
/// before have not: their hash is `read`, which is empty if all documents were read.
void check_documents(const Documents& documents, const nlohmann::json& state,
                     const std::string& read) {
  const int64_t count = count_field(state, "documents");
  const bool same_count = count == documents.count();
  if (same_count && state.value("source", std::string()) == documents.fingerprint()) return;
  if (same_count && !read.empty() && state.value("read", std::string()) == read)
    return log::warning(
        documents.source() +
        " has changed since the data position was saved, but only in documents that were not read "
        "before; the run continues with their new content");
  const std::string difference =
      same_count ? "documents of " + documents.source() + " that were already read differ"
                 : c10::str("there were ", count, " documents, and ", documents.source(),
                            " now has ", documents.count());
  throw Error(
      "the text or the tokenizer has changed since the data position was saved: " + difference +
          ". Resuming would repeat or skip text: restore the original text, or start a new run "
          "from the checkpoint",
      ExitCode::data);
}

}  // namespace

Documents::~Documents() = default;

uint64_t Documents::hash(int64_t) const {
  return document_hash(fingerprint());
}

nlohmann::json Documents::state() const {
  return nullptr;
}

void Documents::load_state(const nlohmann::json&) {}

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

/// Extends read_hash_ to the documents of epoch 0 that the stream has begun to read. From epoch 1
/// on, it has read all of them.
void PackedStream::hash_read() {
  if (cursor_.epoch > 0) return;
  for (const int64_t end = cursor_.position + (cursor_.offset > 0); hashed_ < end; ++hashed_)
    read_hash_ = random_bits({read_hash_, documents_->hash(document_at({0, hashed_, 0}))});
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
  hash_read();

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
          {"read", cursor_.epoch == 0 ? std::to_string(read_hash_) : ""},
          {"selection", documents_->state()},
          {"seed", order_seed(context_)}};
}

/// Selects the documents of the saved `state` and moves to `at`.
void PackedStream::move_to(const Cursor& at, const nlohmann::json& state) {
  documents_->load_state(state.value("selection", nlohmann::json()));
  order_ = Permutation(documents_->count(), order_seed(context_), 0);
  order_epoch_ = 0;
  cursor_ = at;
  hashed_ = 0;
  read_hash_ = 0;
  if (at.position <= documents_->count()) hash_read();
}

void PackedStream::load_state(const nlohmann::json& state) {
  const Cursor at{count_field(state, "epoch"), count_field(state, "document"),
                  count_field(state, "offset")};
  const int64_t rows = count_field(state, "rows"), documents = count_field(state, "documents");
  if (state.value("seed", uint64_t{0}) != order_seed(context_))
    throw Error(
        c10::str("the data position was saved with train.seed ",
                 state.value("seed", nlohmann::json()).dump(),
                 ", which determines the document order, but this run uses ", order_seed(context_)),
        ExitCode::data);
  if (at.position > documents || (at.position == documents && at.offset != 0))
    throw Error("the saved data position is past the last document", ExitCode::data);
  const Cursor before = cursor_;
  const nlohmann::json selection{{"selection", documents_->state()}};
  try {
    move_to(at, state);
    check_documents(*documents_, state, at.epoch == 0 ? std::to_string(read_hash_) : "");
    if (at.position < documents && at.offset > documents_->length(document_at(at)))
      throw Error("the saved data position is past the end of its document", ExitCode::data);
    rows_ = rows;
  } catch (...) {
    move_to(before, selection);
    throw;
  }
}

}  // namespace dsv3
