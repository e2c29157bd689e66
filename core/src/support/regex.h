// Regular expressions that users write, matched with PCRE2 in a bounded number of steps.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace dsv3 {

class Regex {
 public:
  /// Throws dsv3::Error (ExitCode::usage) with a text such as "is not a regular expression: ...",
  /// which continues a sentence about the expression.
  explicit Regex(const std::string& expression);

  /// Whether any part of `text` matches. Throws like the constructor if the search takes too many
  /// steps, as for (a+)+$ in a long text.
  bool found_in(std::string_view text) const;

 private:
  std::shared_ptr<const void> code_;
};

}  // namespace dsv3
