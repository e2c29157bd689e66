#include <string>

#include <torch/version.h>

#include <dsv3/sdk/version.h>

#include "common/command_line.h"
#include "revision.h"

void add_version_flag(CLI::App& app) {
  const std::string revision = DSV3_REVISION;
  const std::string text = "dsv3 " DSV3_VERSION + (revision.empty() ? "" : " (" + revision + ")") +
                           "\nSDK      " DSV3_SDK_VERSION ", headers " DSV3_SDK_HEADERS
                           "\nLibTorch " TORCH_VERSION "\nCompiler " DSV3_COMPILER;
  app.set_version_flag("--version", text, "Print the version and exit");
}
