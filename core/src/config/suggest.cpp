#include <algorithm>
#include <numeric>

#include <dsv3/runtime/suggest.h>

namespace dsv3 {

int edit_distance(const std::string& a, const std::string& b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i) + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const int replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  if (word.size() > 100) return "";
  // If half the letters in a short name differ, it is a different name rather than a typo.
  const int limit = word.size() >= 8 ? 3 : word.size() >= 4 ? 2 : 1;
  std::string best;
  int best_distance = limit + 1;
  for (const std::string& candidate : known) {
    const int distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string did_you_mean(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = nearest(word, known);
  return near.empty() ? "" : "did you mean '" + near + "'?";
}

std::string suggestion(const std::string& word, const std::vector<std::string>& known,
                       const std::string& label) {
  const std::string question = did_you_mean(word, known);
  return question + (question.empty() ? "" : " ") + label + ": " + comma_list(known);
}

std::string comma_list(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace dsv3
