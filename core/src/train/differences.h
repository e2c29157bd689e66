// Settings of two experiments side by side, for error texts.
#pragma once

#include <string>

namespace dsv3 {

/// One line for every key below `section` (empty = all) on which two texts of Experiment::resolved
/// differ: "\n  model.hidden: 32 in the run, 64 now". `in_a` and `in_b` say whose values they are.
std::string difference_lines(const std::string& a, const std::string& b, const std::string& in_a,
                             const std::string& in_b, const std::string& section = "");

}  // namespace dsv3
