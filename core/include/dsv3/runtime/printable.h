// What text from outside passes through before it reaches a terminal, a log or a message.
#pragma once

#include <string>
#include <string_view>

namespace dsv3 {

/// Escapes what could control or mislead a terminal: control characters, characters that change the
/// direction of text, invisible characters, and bytes that are not UTF-8. Keeps newlines and tabs.
/// Characters become escapes such as \u001b, which have the same meaning in JSON and in quoted
/// YAML. Bytes become \xff.
std::string escaped(std::string_view text);

/// As escaped(), and replaces hidden values as without_secrets() does.
std::string printable(std::string_view text);

/// As printable(), for text that belongs in one line, such as a name: also escapes newlines and
/// tabs.
std::string printable_line(std::string_view text);

/// Indents all lines but the first, so that text from outside cannot look like a line of its own.
std::string indented(std::string text);

/// Returns the number of bytes at the end of `text` that begin a UTF-8 character but do not
/// complete it, at most 3.
size_t incomplete_character(std::string_view text);

/// Hides `value`, the value of the environment variable `variable`, in all later messages. Ignores
/// values that look like other text: those shorter than 4 characters, true and false, and
/// numbers shorter than 8 characters.
void hide_value(const std::string& variable, const std::string& value);
/// Replaces `value` by `replacement` in all later messages, with the same exceptions.
void hide_text(const std::string& value, const std::string& replacement);

/// Replaces each hidden value in `text` by ${env:NAME} or its other replacement.
std::string without_secrets(std::string text);

/// Quotes `text` as one word of a shell command, if necessary.
std::string shell_quoted(const std::string& text);

}  // namespace dsv3
