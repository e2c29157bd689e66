// Computes loss and bits per byte on text files and token shards.
#include <dsv3/sdk/packing.h>
#include <dsv3/support/token_file.h>

#include "eval/scorer.h"

namespace dsv3::eval {
namespace {

/// Sums the loss over documents. Cuts each document into windows of at most T predictions and packs
/// the windows into rows of T + 1 tokens. Each window gets its own document id, so that windows do
/// not attend to each other.
class DocumentSum {
 public:
  DocumentSum(const Scorer& scorer, std::string source) : scorer_(scorer) {
    score_.source = std::move(source);
    score_.documents = 0;
    if (scorer.tokenizer) score_.bytes = 0;
    clear();
  }

  /// `has_end`: whether the last id is the end-of-text id. `bytes`: size of the text after the
  /// first token.
  void add(std::span<const int64_t> ids, bool has_end, int64_t bytes) {
    ++*score_.documents;
    if (score_.bytes) *score_.bytes += bytes;
    const int64_t size = std::ssize(ids), sequence = scorer_.sequence;
    for (int64_t begin = 0; begin + 1 < size; begin += sequence) {
      const int64_t count = std::min(sequence + 1, size - begin);
      add_window(ids.subspan(begin, count), has_end && begin + count == size);
    }
  }

  int64_t documents() const { return *score_.documents; }

  TextScore finish() {
    score_rows();
    if (score_.tokens == 0)
      throw Error(c10::str(score_.source, ": nothing to predict, because none of its ", documents(),
                           " document(s) has a second token"),
                  ExitCode::data);
    return score_;
  }

 private:
  void clear() {
    tokens_ = at::zeros({scorer_.batch, scorer_.sequence + 1}, at::kLong);
    ids_ = at::full({scorer_.batch, scorer_.sequence + 1}, -1, at::kLong);
    ends_ = at::zeros({scorer_.batch, scorer_.sequence}, at::kBool);
    row_ = column_ = longest_ = 0;
  }

  void add_window(std::span<const int64_t> window, bool has_end) {
    const int64_t size = std::ssize(window), width = scorer_.sequence + 1;
    if (column_ + size > width) {
      ++row_;
      column_ = 0;
    }
    if (row_ == scorer_.batch) score_rows();
    const int64_t begin = row_ * width + column_;
    std::copy(window.begin(), window.end(), tokens_.mutable_data_ptr<int64_t>() + begin);
    std::fill_n(ids_.mutable_data_ptr<int64_t>() + begin, size, windows_++);
    if (has_end) ends_.mutable_data_ptr<bool>()[row_ * (width - 1) + column_ + size - 2] = true;
    column_ += size;
    longest_ = std::max(longest_, column_);
  }

  /// Adds the losses of the filled rows to the score and clears the rows.
  void score_rows() {
    const int64_t rows = std::min(scorer_.batch, row_ + (column_ > 0 ? 1 : 0));
    if (rows == 0) return;
    // Short documents do not fill long rows, so leave out the columns that no row uses.
    const auto used = [&](const at::Tensor& t, int64_t columns) {
      return t.narrow(0, 0, rows).narrow(1, 0, columns).contiguous();
    };
    const Batch batch{used(tokens_, longest_), used(ids_, longest_)};
    const at::Tensor targets = shifted_targets(batch.tokens, batch.document_ids, 0);
    const at::Tensor losses = scorer_.model.token_losses(batch, targets).to(at::kDouble);
    const double sum = losses.sum().item<double>();
    score_.tokens += targets.ge(0).sum().item<int64_t>();
    score_.nats += sum;
    score_.text_nats += sum - (losses * used(ends_, longest_ - 1)).sum().item<double>();
    clear();
  }

  const Scorer& scorer_;
  TextScore score_;
  at::Tensor tokens_, ids_, ends_;  // ends_: whether each target is an end-of-text id
  int64_t row_ = 0, column_ = 0;    // where the next window starts
  int64_t longest_ = 0;             // number of columns in use
  int64_t windows_ = 0;
};

int64_t byte_count(const Tokenizer& tokenizer, int64_t id) {
  return std::ssize(tokenizer.token_bytes(int32_t(id)));
}

/// Rejects files prepared with a different tokenizer, because their ids stand for different
/// strings.
void check_header(const TokenFile& file, const Tokenizer* tokenizer) {
  const std::string& digest = file.header().tokenizer;
  if (tokenizer && !digest.empty() && digest != tokenizer->digest())
    throw Error(file.path() + " was prepared with a different tokenizer (digest " +
                    digest.substr(0, 12) + "..., the model's is " +
                    tokenizer->digest().substr(0, 12) +
                    "...): prepare the text again with the model's tokenizer",
                ExitCode::data);
}

}  // namespace

const Tokenizer& Scorer::required_tokenizer(const std::string& what) const {
  if (tokenizer) return *tokenizer;
  throw Error(what + " needs a tokenizer, but the model has none: pass one with --tokenizer",
              ExitCode::usage);
}

void Scorer::check_id(int64_t id, const std::string& where) const {
  if (id >= 0 && id < model.vocab()) return;
  throw Error(c10::str(where, ": token id ", id, " is outside the model's vocabulary, 0 to ",
                       model.vocab() - 1,
                       "; check that the tokenizer is the one the model was trained with"),
              ExitCode::data);
}

TextScore score_text(const Scorer& scorer, const std::string& path, const TextFormat& format) {
  const Tokenizer& tokenizer = scorer.required_tokenizer("text");
  const TextFiles files({path}, format);
  files.warn_about_skipped();
  DocumentSum sum(scorer, path);
  std::string buffer;
  for (const TextFiles::Document& document : files.documents()) {
    if (scorer.enough(sum.documents())) break;
    const std::string_view text = files.text(document, buffer);
    const std::vector<int32_t> encoded = tokenizer.encode(text);
    std::vector<int64_t> ids(encoded.begin(), encoded.end());
    const bool has_end = tokenizer.eos_id() >= 0;
    if (has_end) ids.push_back(tokenizer.eos_id());
    for (const int64_t id : ids) scorer.check_id(id, path);
    const int64_t first = encoded.empty() ? 0 : byte_count(tokenizer, encoded[0]);
    sum.add(ids, has_end, std::max<int64_t>(std::ssize(text) - first, 0));
  }
  return sum.finish();
}

TextScore score_shards(const Scorer& scorer, const std::string& path) {
  const Tokenizer* tokenizer = scorer.tokenizer;
  DocumentSum sum(scorer, path);
  for (const std::string& name : token_files_in(path)) {
    const TokenFile file(name, "auto");
    check_header(file, tokenizer);
    const int64_t eos =
        file.header().eos < 0 && tokenizer ? tokenizer->eos_id() : file.header().eos;
    for (const TokenDocument& document : file.documents(eos)) {
      if (scorer.enough(sum.documents())) break;
      std::vector<int64_t> ids(document.end - document.begin);
      file.read(document.begin, ids);
      const bool has_end = eos >= 0 && !ids.empty() && ids.back() == eos;
      int64_t bytes = 0;
      for (size_t i = 0; i < ids.size(); ++i) {
        scorer.check_id(ids[i], name);
        if (tokenizer && i > 0 && !(has_end && i + 1 == ids.size()))
          bytes += byte_count(*tokenizer, ids[i]);
      }
      sum.add(ids, has_end, bytes);
    }
  }
  return sum.finish();
}

}  // namespace dsv3::eval
