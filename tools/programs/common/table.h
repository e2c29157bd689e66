// Tables for people and programs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

/// The cells of one row. The first row of a table is its header, and all rows have as many cells.
using Row = std::vector<std::string>;

/// The number of characters in UTF-8 text.
size_t width_of(std::string_view text);
/// Cuts UTF-8 text to `width` characters, of which the last is then "…".
std::string cut_to(const std::string& text, size_t width);

/// Aligned columns with two spaces between them. Columns whose cells below the header are numbers
/// or "-" are aligned to the right.
std::string text_table(const std::vector<Row>& rows);
/// A table of GitHub's Markdown.
std::string markdown_table(const std::vector<Row>& rows);
/// RFC 4180, with "\n" as line end.
std::string csv_table(const std::vector<Row>& rows);
