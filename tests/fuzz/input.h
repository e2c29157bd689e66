// Helpers for all fuzz targets: they write the input to a file, and check that a parser throws no
// exception other than dsv3::Error.
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

/// A folder for this process below TMPDIR. run.py removes it.
inline const std::filesystem::path& folder() {
  static const std::filesystem::path path = [] {
    const auto folder =
        std::filesystem::temp_directory_path() / ("dsv3-fuzz-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder);
    return folder;
  }();
  return path;
}

/// Writes `bytes` to folder()/name.
inline std::filesystem::path write(const std::string& name, std::string_view bytes) {
  const auto path = folder() / name;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) std::abort();  // otherwise, a full disk would look like rejected input
  return path;
}

inline std::string_view view(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Stops the fuzzer when the parsed data breaks an invariant.
inline void require(bool holds) {
  if (!holds) std::abort();
}

/// Runs `parse`. A parser may reject its input only with a dsv3::Error that has a message; any
/// other exception is a finding.
template <class F>
void may_throw_error(F&& parse) {
  try {
    parse();
  } catch (const dsv3::Error& error) {
    require(*error.what() != '\0');
  }
}

}  // namespace fuzz
