#include "tokens.h"

#include <algorithm>
#include <cmath>

#include <dsv3/sdk/plugin.h>

namespace dsv3::plugins {
namespace {

std::vector<std::string> paths_of(const TokensOptions& options, Split split) {
  if (split == Split::validation && !options.validation_path.empty())
    return {options.validation_path};
  std::vector<std::string> paths = options.paths;
  if (!options.path.empty()) paths.insert(paths.begin(), options.path);
  return paths;
}

/// Index of the first held-out file. The held-out set has at least one file, but not all.
size_t first_held_out(size_t files, double share) {
  if (share <= 0 || files < 2) return files;
  const auto count = static_cast<size_t>(std::ceil(share * static_cast<double>(files)));
  return files - std::clamp<size_t>(count, 1, files - 1);
}

}  // namespace

TokenDocuments::TokenDocuments(const TokensOptions& options, const DataContext& context)
    : vocab_(context.vocab) {
  const bool validation = context.split == Split::validation;
  if (validation && !options.validation_path.empty())
    for (const std::string& path : paths_of(options, Split::train))
      require_same_tokenizer(TokenFile(token_files_in(path).front(), options.format));
  for (const std::string& path : paths_of(options, context.split)) {
    source_ += (source_.empty() ? "" : ", ") + path;
    for (const std::string& name : token_files_in(path)) {
      files_.emplace_back(name, options.format);
      check_header(files_.back(), context);
      require_same_tokenizer(files_.back());
    }
  }
  const bool has_validation_path = !options.validation_path.empty();
  const bool by_shard = options.split == "shard" && !has_validation_path;
  if (by_shard && files_.size() < 2)
    throw Error("`split: shard` needs several files, but " + source_ +
                    " is one file; use `split: document`",
                ExitCode::usage);
  const size_t held_out_from = first_held_out(files_.size(), context.validation_share);
  uint64_t hash = files_.size();
  for (uint32_t f = 0; f < files_.size(); ++f) {
    if (by_shard && (f >= held_out_from) != validation) continue;
    const int64_t eos = options.eos >= 0 ? options.eos : files_[f].header().eos;
    for (const TokenDocument& document : files_[f].documents(eos)) {
      if (!by_shard && !has_validation_path &&
          held_out(document.hash, context.validation_share) != validation)
        continue;
      documents_.push_back({f, document.begin, document.end});
      hash = random_bits({hash, document.hash, document.end - document.begin});
    }
  }
  fingerprint_ = std::to_string(hash);
}

void TokenDocuments::check_header(const TokenFile& file, const DataContext& context) const {
  const TokenHeader& header = file.header();
  if (context.vocab > 0 && header.vocab > static_cast<uint64_t>(context.vocab))
    throw Error(file.path() + " was prepared with a vocabulary of " + std::to_string(header.vocab) +
                    " ids, but model.vocab is " + std::to_string(context.vocab),
                ExitCode::data);
  if (!context.tokenizer || header.tokenizer.empty()) return;
  if (header.tokenizer != context.tokenizer->digest())
    throw Error(file.path() + " was prepared with a different tokenizer (digest " +
                    header.tokenizer.substr(0, 12) + "..., the experiment's is " +
                    context.tokenizer->digest().substr(0, 12) +
                    "...); use that tokenizer, or prepare the text again",
                ExitCode::data);
  if (header.eos != context.tokenizer->eos_id())
    throw Error(file.path() + " ends documents with id " + std::to_string(header.eos) +
                    ", but the experiment's tokenizer ends them with " +
                    std::to_string(context.tokenizer->eos_id()) +
                    "; set the tokenizer's `eos` option to match",
                ExitCode::data);
}

/// Ids of different tokenizers have different meanings.
void TokenDocuments::require_same_tokenizer(const TokenFile& file) {
  const std::string& digest = file.header().tokenizer;
  if (digest.empty()) return;
  if (tokenizer_.second.empty()) tokenizer_ = {file.path(), digest};
  if (tokenizer_.second != digest)
    throw Error(file.path() + " was prepared with a different tokenizer than " + tokenizer_.first +
                    " (digests " + digest.substr(0, 12) + "... and " +
                    tokenizer_.second.substr(0, 12) + "...); prepare both with one tokenizer",
                ExitCode::data);
}

int64_t TokenDocuments::length(int64_t document) {
  return static_cast<int64_t>(documents_[document].end - documents_[document].begin);
}

void TokenDocuments::read(int64_t document, int64_t offset, std::span<int64_t> out) {
  const Place& place = documents_[document];
  const TokenFile& file = files_[place.file];
  file.read(place.begin + offset, out);
  if (vocab_ <= 0) return;
  for (size_t i = 0; i < out.size(); ++i)
    if (out[i] >= vocab_)
      throw Error(
          "token id " + std::to_string(out[i]) + " at token " +
              std::to_string(place.begin + offset + i) + " of " + file.path() +
              " is not below model.vocab " + std::to_string(vocab_) +
              "; check that the file was prepared with this tokenizer and that its format is " +
              file.format(),
          ExitCode::data);
}

}  // namespace dsv3::plugins

DSV3_PLUGIN(registrar) {
  registrar.data<dsv3::plugins::TokensData>("tokens", "Prepared token files: dsv3, llm.c, nanoGPT");
}
