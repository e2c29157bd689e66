// The safetensors file format (names, dtypes, shapes and bytes), without LibTorch.
#pragma once

#include <map>
#include <vector>

#include <dsv3/support/fs.h>

namespace dsv3::safetensors {

/// A tensor in a file or to be written. `bytes` points at `size` bytes of row-major data. In a file
/// it may be unaligned, so copy it with memcpy.
struct View {
  std::string dtype;  ///< "F32", "BF16", "F64", "F16", "I64", "I32", "U8", "BOOL", ...
  std::vector<int64_t> shape;
  const void* bytes = nullptr;
  uint64_t size = 0;
};

/// Size of an element of `dtype` in bytes; 0 = unknown dtype.
uint64_t element_size(std::string_view dtype);

/// Size and digest of a written file, for a manifest.
struct Written {
  uint64_t bytes = 0;
  std::string sha256;
};

/// Writes and fsyncs one file: tensors in the map's order, `metadata` as the header's __metadata__.
Written write(const std::filesystem::path& path, const std::map<std::string, View>& tensors,
              const std::map<std::string, std::string>& metadata = {});

/// A mapped file. The constructor performs all checks of the reference implementation: header size
/// (at most 100 MB), JSON, no duplicate keys, known dtypes, size = shape x dtype without overflow,
/// offsets contiguous from 0 to the end of the file. Throws a dsv3::Error (ExitCode::checkpoint)
/// that names the file and the tensor.
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
