// "did you mean": the known word nearest to a mistyped one.
#pragma once

#include <string>
#include <vector>

namespace dsv3 {

/// Insertions, deletions and replacements that turn `a` into `b`.
int edit_distance(const std::string& a, const std::string& b);

/// Nearest of `known` within 2 edits (3 from 8 letters on); empty = none is that near.
std::string nearest(const std::string& word, const std::vector<std::string>& known);

}  // namespace dsv3
