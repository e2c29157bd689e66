// Fuzz target that reads, merges and checks an experiment's YAML with a catalog of fake components.
#include "core/config/fake.h"
#include "input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = fuzz::write("experiment.yaml", fuzz::view(data, size));
  fuzz::may_throw_error([&] { fake::load(file); });
  return 0;
}
