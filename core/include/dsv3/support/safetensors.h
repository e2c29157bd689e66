// Reads and writes safetensors files (names, dtypes, shapes and bytes) without LibTorch.
#pragma once

#include <map>
#include <vector>

#include <dsv3/support/fs.h>

namespace dsv3::safetensors {

/// A tensor in a file, or one to be written. `bytes` points to `size` bytes of row-major data. In a
/// file, they may be unaligned, so copy them with memcpy.
struct View {
  std::string dtype;  ///< "F32", "BF16", "F64", "F16", "I64", "I32", "U8", "BOOL", ...
  std::vector<int64_t> shape;
  const void* bytes = nullptr;
  uint64_t size = 0;
};

/// Returns the size of an element of `dtype` in bytes, or 0 if the dtype is unknown.
uint64_t element_size(std::string_view dtype);

/// Size and digest of a file that was written, for a manifest.
struct Written {
  uint64_t bytes = 0;
  std::string sha256;
};

/// Writes and fsyncs one file. Its tensors are in the map's order, and `metadata` becomes the
/// header's __metadata__.
Written write(const std::filesystem::path& path, const std::map<std::string, View>& tensors,
              const std::map<std::string, std::string>& metadata = {});

/// A memory-mapped file. The constructor performs all checks of the reference implementation:
/// header size (at most 100 MB), JSON, no duplicate keys, known dtypes, size = shape x dtype
/// without overflow, offsets contiguous from 0 to the end of the file. Throws a dsv3::Error
/// (ExitCode::checkpoint) that names the file and the tensor.
class File {
 public:
  explicit File(const std::filesystem::path& path);
  const std::map<std::string, View>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  fs::Mapping mapping_;
  std::map<std::string, View> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace dsv3::safetensors
