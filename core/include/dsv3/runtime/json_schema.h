// A JSON schema of experiment files for editors that complete and check YAML.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/plugins.h>
#include <dsv3/support/json.h>

namespace dsv3 {

struct JsonSchema {
  Json schema;                       ///< draft-07, which YAML language servers support best
  std::vector<std::string> skipped;  ///< one line for each plugin that could not be loaded
};

/// The schema of the core's sections and of the options of every plugin that `plugins` finds; loads
/// all of them. `partial`: for a base file of other experiments, where any key may be missing.
JsonSchema experiment_schema(Plugins& plugins, bool partial);

}  // namespace dsv3
