// Finds the known name closest to a mistyped one, for "did you mean".
#pragma once

#include <string>
#include <vector>

namespace dsv3 {

/// Returns the Levenshtein distance between `a` and `b`: the minimum number of insertions,
/// deletions and substitutions.
int edit_distance(const std::string& a, const std::string& b);

/// Returns the name in `known` closest to `word`, or "" if none is close enough: within 1 edit (2
/// if `word` has 4 letters or more, 3 if it has 8 or more).
std::string nearest(const std::string& word, const std::vector<std::string>& known);

/// Returns "did you mean 'NEAREST'?", or "" if no known name is similar.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& known);

/// Returns "did you mean 'NEAREST'? LABEL: a, b, c", without the question if no known name is
/// similar.
std::string suggestion(const std::string& word, const std::vector<std::string>& known,
                       const std::string& label);

/// "a, b, c".
std::string comma_list(const std::vector<std::string>& words);

}  // namespace dsv3
