// ${env:NAME} and ${a.b.c} in values, resolved when a value is read, after everything is merged.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "config/diagnostics.h"
#include "config/node.h"

namespace dsv3::config {

/// A scalar with its references filled in.
struct Text {
  std::string value;
  bool quoted = false;       ///< written in quotes and free of references: a string, never a number
  bool environment = false;  ///< holds something of the environment: never stored or printed
  bool ok = true;            ///< false: a mistake was reported
};

class Resolver {
 public:
  /// `root` must stay as it is while the resolver lives.
  Resolver(const Node& root, Diagnostics& diagnostics) : root_(root), diagnostics_(diagnostics) {}

  /// `$${` stands for a plain `${`. A missing variable or key, a circle, a reference to something
  /// that is not a scalar are mistakes.
  const Text& resolve(const Node& scalar);

 private:
  Text compute(const Node& scalar);
  Text look_up(const Node& scalar, const std::string& name);

  const Node& root_;
  Diagnostics& diagnostics_;
  std::unordered_map<const Node*, Text> known_;
  std::vector<const Node*> open_;
};

/// The text that resolves to `value` itself.
std::string without_references(const std::string& value);

}  // namespace dsv3::config
