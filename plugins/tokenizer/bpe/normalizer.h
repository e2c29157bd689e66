// Unicode normalisation, as specified in a tokenizer.json.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dsv3::bpe {

enum class Form { nfc = 1, nfd, nfkc, nfkd };

/// Applies a list of normalisation forms in order.
struct Normalizer {
  std::vector<Form> forms;

  /// Accepts and returns valid UTF-8. The result is stored in `buffer` if it differs from `text`.
  std::string_view operator()(std::string_view text, std::string& buffer) const;
};

}  // namespace dsv3::bpe
