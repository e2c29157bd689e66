// Unicode normalisation of a tokenizer.json.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dsv3::bpe {

enum class Form { nfc = 1, nfd, nfkc, nfkd };

/// Forms applied one after another; none = text stays as it is.
struct Normalizer {
  std::vector<Form> forms;

  /// Valid UTF-8 in and out; `buffer` holds the result when it must be made.
  std::string_view operator()(std::string_view text, std::string& buffer) const;
};

}  // namespace dsv3::bpe
