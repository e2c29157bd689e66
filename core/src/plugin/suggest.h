// "Did you mean": the known word nearest to a mistyped one.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

namespace dsv3 {

/// Insertions, deletions and replacements between two words (Levenshtein).
inline size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j + 1] + 1, row[j] + 1});
    }
  }
  return row.back();
}

/// The nearest of `known` within 2 edits (3 from 8 letters on), else "".
inline std::string closest(std::string_view word, const std::vector<std::string>& known) {
  size_t best = word.size() >= 8 ? 4 : 3;
  std::string found;
  for (const std::string& one : known)
    if (const size_t distance = edit_distance(word, one); distance < best) {
      best = distance;
      found = one;
    }
  return found;
}

}  // namespace dsv3
