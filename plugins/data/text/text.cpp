#include "text.h"

#include <algorithm>

#include <dsv3/sdk/log.h>
#include <dsv3/sdk/plugin.h>

namespace dsv3::plugins {
namespace {

/// Largest number of documents whose selection is saved with the data position, so that a
/// correction which moves a document to the other split does not change the order.
constexpr uint64_t kSavedSelection = 1 << 20;
constexpr int64_t kCachedTokens = 64 << 20;  // 256 MiB per split, at 4 bytes per token

std::vector<std::string> all_paths(const TextOptions& options) {
  std::vector<std::string> paths = options.paths;
  if (!options.path.empty()) paths.insert(paths.begin(), options.path);
  return paths;
}

std::shared_ptr<const Tokenizer> checked_tokenizer(const DataContext& context) {
  if (!context.tokenizer)
    throw Error("data/text needs a tokenizer: add `tokenizer: {plugin: bytes}` to `data`",
                ExitCode::usage);
  if (context.vocab > 0 && context.tokenizer->vocab_size() > context.vocab)
    throw Error("the tokenizer has " + std::to_string(context.tokenizer->vocab_size()) +
                    " ids, but model.vocab is " + std::to_string(context.vocab) +
                    "; raise model.vocab or set it to auto",
                ExitCode::usage);
  return context.tokenizer;
}

}  // namespace

TextDocuments::TextDocuments(const TextOptions& options, const DataContext& context)
    : files_(all_paths(options), {options.documents, options.field, options.on_error}),
      tokenizer_(checked_tokenizer(context)),
      warns_(context.split == Split::train) {
  select([&](const TextFiles::Document& document) {
    return held_out(document.hash, context.validation_share) ==
           (context.split == Split::validation);
  });
}

void TextDocuments::select(const std::function<bool(const TextFiles::Document&)>& selected) {
  const std::vector<TextFiles::Document>& documents = files_.documents();
  std::string bits((files_.count() + 3) / 4, '\0');  // 4 documents per hex digit
  uint64_t hash = document_hash(tokenizer_->digest());
  indices_.clear();
  for (size_t i = 0; i < documents.size(); ++i) {
    if (!selected(documents[i])) continue;
    indices_.push_back(i);
    hash = random_bits({hash, documents[i].hash});
    bits[documents[i].number / 4] |= static_cast<char>(1 << documents[i].number % 4);
  }
  for (char& digit : bits) digit = "0123456789abcdef"[static_cast<int>(digit)];
  state_ = {{"skipped", files_.skipped()}};
  if (files_.count() <= kSavedSelection) state_["documents"] = bits;
  fingerprint_ = std::to_string(hash);
  cache_.assign(indices_.size(), {});
  cached_.assign(indices_.size(), false);
  cached_tokens_ = 0;
  current_ = -1;
}

void TextDocuments::load_state(const nlohmann::json& state) {
  const auto saved = state.is_object() ? state.find("documents") : state.end();
  if (!state.is_object() || saved == state.end() || !saved->is_string() || state == state_) return;
  const std::string bits = saved->get<std::string>();
  const std::vector<size_t> before = indices_;
  select([&](const TextFiles::Document& document) {
    const size_t digit = document.number / 4;
    const int value = digit < bits.size() ? std::stoi(bits.substr(digit, 1), nullptr, 16) : 0;
    return (value >> document.number % 4 & 1) != 0;
  });
  keeps_selection_ = indices_ != before;
}

uint64_t TextDocuments::hash(int64_t document) const {
  return random_bits({document_hash(tokenizer_->digest()),
                      files_.documents()[indices_[static_cast<size_t>(document)]].hash});
}

const std::vector<int32_t>& TextDocuments::tokens(int64_t document) {
  if (cached_[document]) return cache_[document];
  if (document == current_) return current_tokens_;
  std::vector<int32_t> ids =
      tokenizer_->encode(files_.text(files_.documents()[indices_[document]], buffer_));
  if (tokenizer_->eos_id() >= 0) ids.push_back(tokenizer_->eos_id());
  const int64_t size = static_cast<int64_t>(ids.size());
  if (cached_tokens_ + size <= kCachedTokens) {
    cached_tokens_ += size;
    cached_[document] = true;
    ids.shrink_to_fit();
    return cache_[document] = std::move(ids);
  }
  current_ = document;
  return current_tokens_ = std::move(ids);
}

int64_t TextDocuments::length(int64_t document) {
  return static_cast<int64_t>(tokens(document).size());
}

void TextDocuments::read(int64_t document, int64_t offset, std::span<int64_t> out) {
  if (std::exchange(warns_, false)) files_.warn_about_skipped();
  if (std::exchange(keeps_selection_, false))
    log::warning(files_.source() +
                 " has documents that were corrected, added or assigned to another split since the "
                 "run started. The run keeps the documents it started with, even if they are now "
                 "also in the validation split, and does not use others");
  const std::vector<int32_t>& from = tokens(document);
  std::copy_n(from.begin() + offset, out.size(), out.begin());
}

}  // namespace dsv3::plugins

DSV3_PLUGIN(registrar) {
  registrar.data<dsv3::plugins::TextData>("text", "Text files, tokenised on the fly");
}
