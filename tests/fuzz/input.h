// What all fuzz targets share: the input as a file, and the one exception that a parser may throw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <unistd.h>

#include <dsv3/sdk/error.h>

namespace fuzz {

/// A folder of this process, below TMPDIR, which the caller of the target empties.
inline const std::filesystem::path& folder() {
  static const std::filesystem::path path = [] {
    const auto made =
        std::filesystem::temp_directory_path() / ("dsv3-fuzz-" + std::to_string(::getpid()));
    std::filesystem::create_directories(made);
    return made;
  }();
  return path;
}

/// Makes folder()/name hold exactly `bytes`.
inline std::filesystem::path put(const std::string& name, std::string_view bytes) {
  const auto path = folder() / name;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) std::abort();  // a full disk would look like a parser that refuses everything
  return path;
}

inline std::string_view view(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Stops the fuzzer when what was read breaks a promise of the parser.
inline void require(bool kept) {
  if (!kept) std::abort();
}

/// Runs `read`. dsv3::Error is how a parser refuses its input; everything else that comes out of it
/// is a finding. Refusals must say something.
template <class F>
void refusable(F&& read) {
  try {
    read();
  } catch (const dsv3::Error& error) {
    require(*error.what() != '\0');
  }
}

}  // namespace fuzz
