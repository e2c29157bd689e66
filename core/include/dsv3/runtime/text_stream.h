// Text from tokens that arrive one by one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <dsv3/sdk/tokenizer.h>

namespace dsv3 {

/// Returns only whole UTF-8 characters, and nothing of a stop text or after it.
class TextStream {
 public:
  /// Keeps a reference to `tokenizer`. Throws dsv3::Error for empty stop texts.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops);
  /// Adds a token; returns the text that is certain now.
  std::string add(int32_t id);
  /// Whether a stop text was found.
  bool stopped() const { return stopped_; }
  /// Returns the text held back so far.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace dsv3
