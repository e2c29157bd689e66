// Special and user-added tokens, which are matched in the text before anything else.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pattern.h"

namespace dsv3::bpe {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  ///< matches only without adjacent word characters
  bool lstrip = false;       ///< includes the white space before it
  bool rstrip = false;       ///< includes the white space after it
  bool normalized = true;    ///< the token's normalised content is matched in the normalised text
  bool special = false;
};

/// Finds the leftmost added token in a string. If several start at the same byte, finds the
/// longest.
class AddedTokens {
 public:
  AddedTokens();
  void add(const AddedToken& token, const std::string& content);
  bool empty() const { return tokens_.empty(); }

  /// Calls `piece(text, id)` for consecutive pieces of `text`; id -1 means ordinary text.
  void split(std::string_view text, MatchScratch& scratch,
             const std::function<void(std::string_view, int32_t)>& piece) const;

 private:
  size_t longest_at(std::string_view text, size_t at, int& token) const;
  bool touches_word(std::string_view text, Span match, MatchScratch& scratch) const;

  std::vector<AddedToken> tokens_;
  std::array<bool, 256> starts_{};                   // whether a token starts with this byte
  std::unordered_map<uint64_t, uint32_t> children_;  // edges of a trie: node << 8 | byte -> node
  std::vector<int> ends_;  // index of the token that ends at each node, or -1
  Pattern word_;
};

}  // namespace dsv3::bpe
