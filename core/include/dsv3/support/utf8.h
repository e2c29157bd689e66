// UTF-8 validation.
#pragma once

#include <cstddef>
#include <string_view>

namespace dsv3 {

/// Size in bytes of the valid character at the start of `text`; 0 = none (an invalid or truncated
/// byte sequence, a surrogate, or a code point above 10FFFF).
size_t character_size(std::string_view text);
/// Size in bytes of the longest valid prefix of `text`.
size_t valid_prefix(std::string_view text);

}  // namespace dsv3
