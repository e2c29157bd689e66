#include "train/differences.h"

#include <dsv3/runtime/compare.h>

namespace dsv3 {

std::string difference_lines(const std::string& a, const std::string& b, const std::string& in_a,
                             const std::string& in_b, const std::string& section) {
  const auto shown = [](const std::string& value) { return value.empty() ? "absent" : value; };
  std::string text;
  for (const Difference& difference : compare_resolved(a, b))
    if (section.empty() || difference.key.starts_with(section + "."))
      text += "\n  " + difference.key + ": " + shown(difference.a) + " " + in_a + ", " +
              shown(difference.b) + " " + in_b;
  return text;
}

}  // namespace dsv3
