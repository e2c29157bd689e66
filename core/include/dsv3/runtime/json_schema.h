// A JSON schema of experiment files, for editors that complete and check YAML.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/plugins.h>
#include <dsv3/support/json.h>

namespace dsv3 {

struct JsonSchema {
  Json schema;                       ///< draft-07, the version YAML's language server supports best
  std::vector<std::string> skipped;  ///< a line for each plugin that could not be loaded
};

/// The schema of the core's sections and of the options of every plugin that `plugins` finds; loads
/// them all. `partial`: for a file that others extend, where any key may be missing.
JsonSchema experiment_schema(Plugins& plugins, bool partial);

}  // namespace dsv3
