// Fuzz target that reads a checkpoint manifest and the pieces that it lists in two files: the input
// itself, and the input with a corrected digest, because mutations would never produce a correct
// digest.
#include "checkpoint/manifest.h"

#include <dsv3/support/json.h>
#include <dsv3/support/sha256.h>

#include "input.h"

namespace {

/// Reads every byte of the tensors in pieces.
void read_tensors(const dsv3::StoredCheckpoint& stored) {
  std::map<std::string, dsv3::safetensors::File> files;
  for (const auto& file : dsv3::files_of(stored.manifest))
    if (dsv3::is_tensor_file(file.name))
      files.emplace(file.name, dsv3::safetensors::File(fuzz::folder() / file.name));
  for (const auto& [name, tensor] : dsv3::join_pieces(files, dsv3::pieces_of(stored.manifest))) {
    int64_t end = 0;
    for (const auto& part : tensor.parts) {
      fuzz::require(part.begin == end);
      end = part.end;
      const int64_t elements = tensor.one_value ? 1 : part.end - part.begin;
      const auto size = int64_t(dsv3::safetensors::element_size(tensor.dtype));
      for (int64_t i = 0; i < elements * size; ++i) {
        [[maybe_unused]] const volatile char byte = part.bytes[i];
      }
    }
  }
}

/// Writes the files whose pieces a manifest may list.
void write_tensors() {
  const std::string bytes(48, 'x');
  const dsv3::safetensors::View half{"F32", {6}, bytes.data(), 24}, one{"I64", {}, bytes.data(), 8};
  dsv3::safetensors::write(fuzz::folder() / "rank-00000.safetensors",
                           {{"w/0", half}, {"count/0", one}, {"whole", half}});
  dsv3::safetensors::write(fuzz::folder() / "rank-00001.safetensors",
                           {{"w/6", half}, {"count/6", one}});
}

void read(std::string_view text) {
  fuzz::write("manifest.json", text);
  fuzz::may_throw_error([] {
    const dsv3::StoredCheckpoint stored = dsv3::read_manifest(fuzz::folder());
    fuzz::require(stored.step >= 0 && stored.tokens >= 0);
    for (const auto& file : dsv3::files_of(stored.manifest))
      fuzz::require(file.name.find('/') == std::string::npos && file.name != "..");
    read_tensors(stored);
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const bool written = (write_tensors(), true);
  fuzz::require(written);
  const std::string_view text = fuzz::view(data, size);
  read(text);
  fuzz::may_throw_error([&] {
    dsv3::Json manifest = dsv3::parse_json(text, "input");
    if (!manifest.is_object()) return;
    manifest.erase("sha256");
    manifest["sha256"] = dsv3::sha256(manifest.dump());
    read(manifest.dump());
  });
  return 0;
}
