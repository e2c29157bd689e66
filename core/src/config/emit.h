// A tree back to YAML, for the resolved experiment of a run folder and for --print-config.
#pragma once

#include <string>

#include "config/diagnostics.h"
#include "config/node.h"

namespace dsv3::config {

/// Block-style YAML; lists of scalars in brackets. With `origins`, every value is followed by a
/// comment that says where it came from.
std::string emit(const Node& map, const Diagnostics* origins = nullptr);

/// A value on one line: a scalar, or a list in brackets.
std::string inline_text(const Node& node);

}  // namespace dsv3::config
