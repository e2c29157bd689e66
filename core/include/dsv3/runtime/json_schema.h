// A JSON schema for experiment files, for editors that complete and check YAML.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/plugins.h>
#include <dsv3/support/json.h>

namespace dsv3 {

struct JsonSchema {
  Json schema;                       ///< draft-07, which YAML language servers support best
  std::vector<std::string> skipped;  ///< one message for each plugin that could not be loaded
};

/// Returns a schema for the core's sections and the options of every plugin that `plugins` finds.
/// Loads all these plugins. If `partial` is set, all keys are optional, as in a base file that
/// other experiments extend.
JsonSchema experiment_schema(Plugins& plugins, bool partial);

}  // namespace dsv3
