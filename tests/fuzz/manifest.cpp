// Fuzz target that reads a checkpoint manifest: the input itself, and the input with a corrected
// digest, because mutations would never produce a correct digest.
#include "checkpoint/manifest.h"

#include <dsv3/support/json.h>
#include <dsv3/support/sha256.h>

#include "input.h"

namespace {

void read(std::string_view text) {
  fuzz::write("manifest.json", text);
  fuzz::may_throw_error([] {
    const dsv3::StoredCheckpoint stored = dsv3::read_manifest(fuzz::folder());
    fuzz::require(stored.step >= 0 && stored.tokens >= 0);
    for (const auto& file : dsv3::files_of(stored.manifest))
      fuzz::require(file.name.find('/') == std::string::npos && file.name != "..");
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
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
