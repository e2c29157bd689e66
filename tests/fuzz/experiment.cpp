// An experiment's YAML through reading, merging and checking, against a table of components.
#include "core/config/fake.h"
#include "input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = fuzz::put("experiment.yaml", fuzz::view(data, size));
  fuzz::refusable([&] { fake::load(file); });
  return 0;
}
