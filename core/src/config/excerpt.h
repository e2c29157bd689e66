// A source line with a caret below the position of an error.
#pragma once

#include <string>
#include <string_view>

#include <dsv3/runtime/experiment.h>

namespace dsv3::config {

/// Line `line` (1-based) of a text without its end; empty when there is no such line.
std::string_view line_of(std::string_view text, int line);

/// `text` with spaces for control characters, which must not reach a terminal.
std::string printable(std::string_view text);

/// The two lines after an error's first line: the source line, and `^~~~` below `length` bytes of
/// it from `column` (1-based, in bytes). `number` is printed before the line; 0 = none. A long line
/// is cut around the column.
std::string excerpt(std::string_view line, int number, int column, size_t length);

/// The excerpt at `origin`, from its file or setting; empty for a default.
std::string excerpt_of(const Origin& origin);

}  // namespace dsv3::config
