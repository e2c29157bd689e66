// Typed values as text: for messages, and as YAML for what is written or printed.
#pragma once

#include <string>

#include <dsv3/sdk/options.h>

namespace dsv3::config {

/// Strings as they are, numbers in their shortest exact form, lists as [a, b]; "unset" for
/// std::monostate.
std::string value_text(const OptionValue& value);

/// The same as YAML on one line that reads back as the value.
std::string value_yaml(const OptionValue& value);

/// A double-quoted YAML scalar. References such as ${a.b} in `text` stay references.
std::string quoted_yaml(const std::string& text);

/// What an option is for, and whether it is a convention.
std::string doc_text(const OptionSpec& spec);

/// The word that an option has for a value, such as `auto`; empty = none.
std::string word_of(const OptionSpec& spec, const OptionValue& value);

}  // namespace dsv3::config
