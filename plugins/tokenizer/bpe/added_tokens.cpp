#include "added_tokens.h"

#include <algorithm>

#include "utf8.h"

namespace dsv3::bpe {
namespace {

uint64_t edge(uint32_t node, char byte) {
  return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
}

/// Size of the last character in `text`, which must be valid UTF-8.
size_t last_character_size(std::string_view text) {
  size_t size = 1;
  while ((static_cast<uint8_t>(text[text.size() - size]) & 0xC0) == 0x80) ++size;
  return size;
}

size_t size_without_trailing_space(std::string_view text) {
  while (!text.empty()) {
    const size_t size = last_character_size(text);
    if (!is_white_space(code_point(text.substr(text.size() - size)))) break;
    text.remove_suffix(size);
  }
  return text.size();
}

size_t leading_space_size(std::string_view text) {
  size_t at = 0;
  while (at < text.size() && is_white_space(code_point(text.substr(at))))
    at += character_size(text.substr(at));
  return at;
}

}  // namespace

// Matches the word characters of Rust's regex crate, which the reference implementation uses for
// `single_word`.
AddedTokens::AddedTokens()
    : ends_(1, -1),
      word_("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]", "word characters") {}

void AddedTokens::add(const AddedToken& token, const std::string& content) {
  if (content.empty()) return;
  uint32_t node = 0;
  for (char byte : content) {
    const auto [it, added] = children_.try_emplace(edge(node, byte), ends_.size());
    if (added) ends_.push_back(-1);
    node = it->second;
  }
  starts_[static_cast<uint8_t>(content[0])] = true;
  ends_[node] = static_cast<int>(tokens_.size());
  tokens_.push_back(token);
}

size_t AddedTokens::longest_at(std::string_view text, size_t at, int& token) const {
  size_t longest = 0;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto it = children_.find(edge(node, text[i]));
    if (it == children_.end()) break;
    node = it->second;
    if (ends_[node] < 0) continue;
    token = ends_[node];
    longest = i + 1 - at;
  }
  return longest;
}

bool AddedTokens::touches_word(std::string_view text, Span match, MatchScratch& scratch) const {
  const auto is_word = [&](std::string_view character) {
    Span found;
    return word_.find(character, 0, found, scratch);
  };
  if (match.begin > 0) {
    const std::string_view before = text.substr(0, match.begin);
    if (is_word(before.substr(before.size() - last_character_size(before)))) return true;
  }
  const std::string_view after = text.substr(match.end);
  return !after.empty() && is_word(after.substr(0, character_size(after)));
}

void AddedTokens::split(std::string_view text, MatchScratch& scratch,
                        const std::function<void(std::string_view, int32_t)>& piece) const {
  size_t done = 0;  // end of the last piece
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    int index = 0;
    const size_t size = starts_[static_cast<uint8_t>(text[at])] ? longest_at(text, at, index) : 0;
    if (size == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    Span match{at, at + size};
    at = match.end;
    if (token.single_word && touches_word(text, match, scratch)) continue;
    if (token.lstrip)
      match.begin = std::max(size_without_trailing_space(text.substr(0, match.begin)), done);
    if (token.rstrip) match.end += leading_space_size(text.substr(match.end));
    if (done < match.begin) piece(text.substr(done, match.begin - done), -1);
    piece(text.substr(match.begin, match.end - match.begin), token.id);
    done = match.end;
  }
  if (done < text.size()) piece(text.substr(done), -1);
}

}  // namespace dsv3::bpe
