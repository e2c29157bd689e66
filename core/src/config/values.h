// Typed values: from written text by the option's type, never by guess, and back to YAML.
#pragma once

#include <optional>
#include <string>

#include <dsv3/sdk/options.h>

#include "config/diagnostics.h"
#include "config/interpolate.h"
#include "config/node.h"

namespace dsv3::config {

/// A checked value and how it is stored: typed, except that what came from the environment stays a
/// reference.
struct Converted {
  OptionValue value;
  Node stored;
};

/// Reads `node` as what `spec` asks for. `what` names it in error texts: "'heads' in
/// model.attention". nullopt = a mistake was reported.
std::optional<Converted> convert(const OptionSpec& spec, const Node& node, const std::string& what,
                                 Resolver& resolver, Diagnostics& diagnostics);

/// "" when `value` is within the option's range and choices, else what is wrong: "must be at least
/// 1".
std::string misfit(const OptionSpec& spec, const OptionValue& value);

/// Numbers in their shortest exact form, lists as [a, b].
std::string value_text(const OptionValue& value);

/// YAML of a value of `spec`, at no position.
Node value_node(const OptionSpec& spec, const OptionValue& value);

/// A scalar that reads back as the string `text`.
Node string_node(const std::string& text);

/// How the string in `node`, resolved to `text`, is stored: what holds the environment stays a
/// reference.
Node stored_string(const Node& node, const Text& text);

/// What an option is for and, of a convention, which implementations have another value than the
/// default.
std::string doc_text(const OptionSpec& spec);
/// What was written, for error texts: "'thirty-two'", "a list", "a map" or "nothing".
std::string got(const Node& node);

/// "an integer", "a list of strings", ...
std::string type_name(OptionType type);

}  // namespace dsv3::config
