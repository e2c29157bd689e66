// Resolves ${env:NAME} and ${a.b.c} in the merged tree and converts values to their options' types,
// without guessing. Also formats values as text, for messages and as YAML.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include <dsv3/sdk/options.h>

#include "config/diagnostics.h"
#include "config/node.h"

namespace dsv3::config {

/// A scalar with its references resolved.
struct Text {
  std::string value;
  bool quoted = false;  ///< written in quotes without references, so it is a string, never a number
  bool environment = false;  ///< contains an environment variable's value; never store or print it
  bool ok = true;            ///< false if an error was reported
};

class Resolver {
 public:
  /// `root` must not change during the resolver's lifetime.
  Resolver(const Node& root, Diagnostics& diagnostics) : root_(root), diagnostics_(diagnostics) {}

  /// Resolves references in a scalar. `$${` is an escaped `${`. Reports a missing variable or key,
  /// a cycle, and a reference to anything but a scalar.
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

/// Converts `node` to the type of `spec`. `what` describes it in error messages: "'heads' in
/// model.attention". Returns nullopt after reporting an error.
std::optional<OptionValue> convert(const OptionSpec& spec, const Node& node,
                                   const std::string& what, Resolver& resolver);

/// Returns "" if the value is within the option's range and choices, otherwise an error message
/// such as "must be at least 1".
std::string misfit(const OptionSpec& spec, const OptionValue& value);

/// Whether keys on the command line and names of tags may contain `c`.
bool is_key_character(char c);

/// The YAML to store for a value that contains an environment variable: `node` as written. "" for
/// any other value.
std::string reference_yaml(const Node& node, Resolver& resolver);

/// The value as written, for error messages: "'thirty-two'", "a list", "a map" or "nothing".
std::string shown(const Node& node);

/// An option type's name: "boolean", "list of strings", ...
std::string type_name(OptionType type);
/// The element type of a list type. A scalar type is returned unchanged.
OptionType element_type(OptionType type);

/// Formats strings unchanged, numbers in their shortest exact form, lists as [a, b], and
/// std::monostate as "unset".
std::string value_text(const OptionValue& value);

/// Formats a value as single-line YAML that reads back as the same value.
std::string value_yaml(const OptionValue& value);

/// Formats a double-quoted YAML scalar. References such as ${a.b} in `text` stay references.
std::string quoted_yaml(const std::string& text);

/// An option's description, including whether it is a convention.
std::string doc_text(const OptionSpec& spec);

/// The option's keyword for `value`, such as `auto`; empty if it has none.
std::string word_of(const OptionSpec& spec, const OptionValue& value);

}  // namespace dsv3::config
