// ${env:NAME} and ${a.b.c} in values, resolved when a value is read, after all layers are merged.
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

 private:
  Text compute(const Node& scalar);
  Text look_up(const Node& scalar, const std::string& name);

  const Node& root_;
  Diagnostics& diagnostics_;
  std::unordered_map<const Node*, Text> known_;
  std::vector<const Node*> open_;
};

}  // namespace dsv3::config
