// Fuzz target that reads a plugin registry's TOML.
#include "plugin/registry.h"

#include "input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = fuzz::write("registry.toml", fuzz::view(data, size));
  fuzz::may_throw_error([&] {
    for (const auto& entry : dsv3::read_registry(file).plugins)
      fuzz::require(!entry.library.empty());
  });
  return 0;
}
