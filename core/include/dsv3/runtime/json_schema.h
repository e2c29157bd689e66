// A JSON schema of experiment files, for editors that complete and check YAML.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/plugins.h>
#include <dsv3/support/json.h>

namespace dsv3 {

struct JsonSchema {
  Json schema;                       ///< draft-07, which YAML's language server knows best
  std::vector<std::string> skipped;  ///< one line for each plugin that could not be loaded
};

/// The schema made from the core's sections and the options of every plugin that `plugins` finds;
/// loads them all. `partial`: of a file that others extend, where anything may be missing.
JsonSchema experiment_schema(Plugins& plugins, bool partial);

}  // namespace dsv3
