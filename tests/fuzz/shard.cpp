// Fuzz target that reads the input as a token file in each format. Also reads it as a dsv3 shard
// with a corrected checksum, because mutations would never produce a correct checksum.
#include <cstring>

#include <dsv3/sdk/documents.h>
#include <dsv3/support/token_file.h>

#include "input.h"

namespace {

constexpr size_t kChecksumAt = 248, kHeaderBytes = 256;

void read(const std::string& bytes, const char* format) {
  const auto path = fuzz::write("shard.bin", bytes);
  fuzz::may_throw_error([&] {
    const dsv3::TokenFile file(path.string(), format);
    fuzz::require(file.header().tokens <= bytes.size() / 2);
    std::vector<int64_t> ids(file.header().tokens);
    file.read(0, ids);
    uint64_t end = 0;
    for (const auto& document : file.documents(/*eos=*/0)) {
      fuzz::require(document.begin == end && document.end >= end);
      end = document.end;
    }
    fuzz::require(end == ids.size());
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string bytes(fuzz::view(data, size));
  for (const char* format : {"dsv3", "auto", "raw16"}) read(bytes, format);
  if (size < kHeaderBytes) return 0;
  const uint64_t checksum = dsv3::document_hash(std::string_view(bytes).substr(0, kChecksumAt));
  std::memcpy(bytes.data() + kChecksumAt, &checksum, sizeof checksum);
  read(bytes, "dsv3");
  return 0;
}
