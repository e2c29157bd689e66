// Fuzz target that reads a plugin's stamp and dependencies: the ELF sections, the note and its text.
#include "plugin/elf.h"
#include "plugin/stamp.h"

#include "input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::may_throw_error([&] {
    const dsv3::Stamp stamp = dsv3::read_stamp(fuzz::view(data, size));
    fuzz::require(!stamp.name.empty() && !stamp.provides.empty());
    dsv3::dependencies_of(fuzz::view(data, size));
  });
  return 0;
}
