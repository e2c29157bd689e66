// YAML text to a Node, with limits that keep hostile or broken files harmless.
#pragma once

#include <optional>

#include "config/diagnostics.h"
#include "config/node.h"

namespace dsv3::config {

constexpr size_t kMaxBytes = 1 << 20;
constexpr int kMaxDepth = 64;
constexpr size_t kMaxNodes = 10'000;  // keys included
constexpr size_t kMaxAliases = 100;
constexpr size_t kMaxExpandedNodes = 100'000;  // with aliases written out

/// Parses the text of `source` from byte `begin` on (one line's offset: for overrides). Mistakes go
/// to `diagnostics`: bad syntax, a limit passed, duplicate keys, `<<`, tags, several documents.
/// nullopt = the text yields no tree at all.
std::optional<Node> parse(Diagnostics& diagnostics, int source, int layer, size_t begin = 0);

}  // namespace dsv3::config
