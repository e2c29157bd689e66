// Text of tokens that come one by one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <dsv3/sdk/tokenizer.h>

namespace dsv3 {

/// Gives out whole UTF-8 characters only, and nothing of a stop text nor behind it.
class TextStream {
 public:
  /// Keeps a reference to `tokenizer`. Empty stop texts are refused with dsv3::Error.
  TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops);
  /// The text that is certain with token `id`.
  std::string add(int32_t id);
  /// A stop text has come.
  bool stopped() const { return stopped_; }
  /// What was held back, at the end.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace dsv3
