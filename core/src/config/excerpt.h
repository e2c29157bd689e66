// A source line with a caret below the place that is meant, for error texts.
#pragma once

#include <string>
#include <string_view>

namespace dsv3::config {

/// Line `line` (1-based) of a text without its end; empty when there is no such line.
std::string_view line_of(std::string_view text, int line);

/// Control characters as blanks: those of a file stay off the terminal.
std::string printable(std::string_view text);

/// Two lines that follow an error's first one: the source line, and `^~~~` below `length` bytes of
/// it from `column` (1-based, in bytes) on. `number` is written before the line; 0 = none. Of a
/// long line only what is around the place.
std::string excerpt(std::string_view line, int number, int column, size_t length);

}  // namespace dsv3::config
