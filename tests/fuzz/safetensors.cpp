// Fuzz target that reads a safetensors file: its header, and every byte of the tensors it lists.
#include <dsv3/support/safetensors.h>

#include "input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto path = fuzz::write("tensors.safetensors", fuzz::view(data, size));
  fuzz::may_throw_error([&] {
    const dsv3::safetensors::File file(path);
    uint64_t bytes = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      const auto* first = static_cast<const uint8_t*>(tensor.bytes);
      for (uint64_t i = 0; i < tensor.size; ++i) {
        [[maybe_unused]] const volatile uint8_t byte = first[i];
      }
      bytes += tensor.size;
    }
    fuzz::require(bytes < size);
  });
  return 0;
}
