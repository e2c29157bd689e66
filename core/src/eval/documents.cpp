// Loss and bits per byte on text files and token shards.
#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/packing.h>
#include <dsv3/support/token_file.h>

#include "eval/scorer.h"
#include "eval/windows.h"

namespace dsv3::eval {
namespace {

/// Adds up the losses of documents.
class DocumentSum {
 public:
  DocumentSum(const Scorer& scorer, std::string source)
      : packer_(scorer.batch, scorer.sequence,
                [this, &scorer](const Batch& batch, const at::Tensor& ends) {
                  const at::Tensor targets = shifted_targets(batch.tokens, batch.document_ids, 0);
                  const at::Tensor losses =
                      scorer.model.token_losses(batch, targets).to(at::kDouble);
                  const double sum = losses.sum().item<double>();
                  score_.tokens += targets.ge(0).sum().item<int64_t>();
                  score_.nats += sum;
                  score_.text_nats += sum - (losses * ends).sum().item<double>();
                }) {
    score_.source = std::move(source);
    score_.documents = 0;
    if (scorer.tokenizer) score_.bytes = 0;
  }

  /// `bytes`: of the text behind the first token.
  void add(std::span<const int64_t> ids, bool has_end, int64_t bytes) {
    ++*score_.documents;
    if (score_.bytes) *score_.bytes += bytes;
    packer_.add(ids, has_end);
  }

  int64_t documents() const { return *score_.documents; }

  TextScore finish() {
    packer_.finish();
    if (score_.tokens == 0)
      throw Error(score_.source + ": nothing to predict in " + std::to_string(documents()) +
                      " document(s), none of which has a second token",
                  ExitCode::data);
    return score_;
  }

 private:
  TextScore score_;
  WindowPacker packer_;
};

int64_t byte_count(const Tokenizer& tokenizer, int64_t id) {
  return std::ssize(tokenizer.token_bytes(static_cast<int32_t>(id)));
}

/// Ids of another tokenizer mean other text.
void check_header(const TokenFile& file, const Tokenizer* tokenizer) {
  const std::string& digest = file.header().tokenizer;
  if (tokenizer && !digest.empty() && digest != tokenizer->digest())
    throw Error(file.path() + " was made with another tokenizer (digest " + digest.substr(0, 12) +
                    "..., the model's is " + tokenizer->digest().substr(0, 12) +
                    "...): prepare the text again with the model's",
                ExitCode::data);
}

}  // namespace

const Tokenizer& Scorer::required_tokenizer(const std::string& what) const {
  if (tokenizer) return *tokenizer;
  throw Error(what + " needs the model's tokenizer, and the model has none: name it by --tokenizer",
              ExitCode::usage);
}

void Scorer::check_id(int64_t id, const std::string& where) const {
  if (id >= 0 && id < model.vocab()) return;
  throw Error(where + ": token id " + std::to_string(id) + " is none of the model's ids 0 to " +
                  std::to_string(model.vocab() - 1) +
                  "; is the tokenizer the one that the model was trained with?",
              ExitCode::data);
}

TextScore score_text(const Scorer& scorer, const std::string& path, const TextFormat& format) {
  const Tokenizer& tokenizer = scorer.required_tokenizer("text");
  const TextFiles files({path}, format);
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
