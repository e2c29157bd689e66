// YAML text to a Node, with limits that make hostile or broken files harmless.
#pragma once

#include <optional>

#include "config/diagnostics.h"
#include "config/node.h"

namespace dsv3::config {

constexpr size_t kMaxBytes = 1 << 20;
constexpr int kMaxDepth = 64;
constexpr size_t kMaxNodes = 10'000;  // keys included
constexpr size_t kMaxAliases = 100;
constexpr size_t kMaxExpandedNodes = 100'000;  // with aliases expanded

/// Parses the text of `source` from byte `begin` on, which must be on its first line. Reports bad
/// syntax, an exceeded limit, duplicate keys, `<<`, tags and several documents to `diagnostics`.
/// nullopt = the text yields no tree at all.
std::optional<Node> parse(Diagnostics& diagnostics, int source, size_t begin = 0);

}  // namespace dsv3::config
