#include "text.h"

#include <algorithm>

#include <dsv3/sdk/plugin.h>

namespace dsv3::plugins {
namespace {

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
    : files_(all_paths(options), {options.documents, options.field}),
      tokenizer_(checked_tokenizer(context)) {
  uint64_t hash = document_hash(tokenizer_->digest());
  for (size_t i = 0; i < files_.documents().size(); ++i) {
    const uint64_t document = files_.documents()[i].hash;
    if (held_out(document, context.validation_share) != (context.split == Split::validation))
      continue;
    indices_.push_back(i);
    hash = random_bits({hash, document});
  }
  fingerprint_ = std::to_string(hash);
  cache_.resize(indices_.size());
  cached_.resize(indices_.size());
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
  const std::vector<int32_t>& from = tokens(document);
  std::copy_n(from.begin() + offset, out.size(), out.begin());
}

}  // namespace dsv3::plugins

DSV3_PLUGIN(registrar) {
  registrar.data<dsv3::plugins::TextData>("text", "Text files, tokenised on the fly");
}
