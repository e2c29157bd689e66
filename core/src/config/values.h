// Typed values from what an experiment says: by the option's type, never by guess.
#pragma once

#include <optional>
#include <string>

#include <dsv3/sdk/options.h>

#include "config/diagnostics.h"
#include "config/interpolate.h"
#include "config/node.h"

namespace dsv3::config {

/// Reads `node` as the type of `spec`. `what` names it in messages: "'heads' in model.attention".
/// nullopt = an error was reported.
std::optional<OptionValue> convert(const OptionSpec& spec, const Node& node,
                                   const std::string& what, Resolver& resolver,
                                   Diagnostics& diagnostics);

/// "" for a value within the option's range and choices, else an error text: "must be at least 1".
std::string misfit(const OptionSpec& spec, const OptionValue& value);

/// YAML stored in place of a value that contains something of the environment: `node` as written.
/// "" for any other value.
std::string reference_yaml(const Node& node, Resolver& resolver);

/// What was written, for messages: "'thirty-two'", "a list", "a map" or "nothing".
std::string shown(const Node& node);

/// "a boolean", "a list of strings", ...
std::string type_name(OptionType type);

}  // namespace dsv3::config
