// Typed values from what an experiment says, by the option's type, never by guess, after
// ${env:NAME} and ${a.b.c} are resolved in the merged tree; and values as text, for messages and as
// YAML.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <dsv3/sdk/options.h>

#include "config/diagnostics.h"
#include "config/node.h"

namespace dsv3::config {

/// A scalar with its references filled in.
struct Text {
  std::string value;
  bool quoted = false;       ///< written in quotes without references: a string, never a number
  bool environment = false;  ///< contains a value of the environment: never stored or printed
  bool ok = true;            ///< false: an error was reported
};

class Resolver {
 public:
  /// `root` must not change while the resolver lives.
  Resolver(const Node& root, Diagnostics& diagnostics) : root_(root), diagnostics_(diagnostics) {}

  /// `$${` means a plain `${`. Reports a missing variable or key, a cycle, and a reference to
  /// something that is not a scalar.
  const Text& resolve(const Node& scalar);
  Diagnostics& diagnostics() { return diagnostics_; }

 private:
  Text fail(const Node& scalar, const std::string& message, std::vector<std::string> notes = {});
  Text compute(const Node& scalar);
  Text look_up(const Node& scalar, const std::string& name);

  const Node& root_;
  Diagnostics& diagnostics_;
  std::unordered_map<const Node*, Text> known_;
  std::vector<const Node*> open_;
};

/// Reads `node` as the type of `spec`. `what` names it in messages: "'heads' in model.attention".
/// nullopt = an error was reported.
std::optional<OptionValue> convert(const OptionSpec& spec, const Node& node,
                                   const std::string& what, Resolver& resolver);

/// "" for a value within the option's range and choices, else an error text: "must be at least 1".
std::string misfit(const OptionSpec& spec, const OptionValue& value);

/// YAML stored in place of a value that contains something of the environment: `node` as written.
/// "" for any other value.
std::string reference_yaml(const Node& node, Resolver& resolver);

/// What was written, for messages: "'thirty-two'", "a list", "a map" or "nothing".
std::string shown(const Node& node);

/// "boolean", "list of strings", ...
std::string type_name(OptionType type);
/// Of a list; a scalar type is its own.
OptionType element_type(OptionType type);

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
