// Measures the time that tokenizing takes.
#pragma once

#include <atomic>
#include <memory>

#include <dsv3/sdk/tokenizer.h>

#include "support/host.h"

namespace dsv3 {

/// Passes calls to another tokenizer, and adds up the time that encode() takes. Thread-safe.
class TimedTokenizer final : public Tokenizer {
 public:
  explicit TimedTokenizer(std::shared_ptr<const Tokenizer> tokenizer)
      : tokenizer_(std::move(tokenizer)) {}

  std::vector<int32_t> encode(std::string_view text) const override {
    const double start = seconds_now();
    std::vector<int32_t> ids = tokenizer_->encode(text);
    seconds_ += seconds_now() - start;
    return ids;
  }
  std::string decode(std::span<const int32_t> ids) const override {
    return tokenizer_->decode(ids);
  }
  std::string token_bytes(int32_t id) const override { return tokenizer_->token_bytes(id); }
  int64_t vocab_size() const override { return tokenizer_->vocab_size(); }
  int32_t eos_id() const override { return tokenizer_->eos_id(); }
  std::string digest() const override { return tokenizer_->digest(); }
  std::map<std::string, std::string> files() const override { return tokenizer_->files(); }

  /// Time spent in encode(), of all threads.
  double seconds() const { return seconds_; }

 private:
  const std::shared_ptr<const Tokenizer> tokenizer_;
  mutable std::atomic<double> seconds_ = 0;
};

}  // namespace dsv3
