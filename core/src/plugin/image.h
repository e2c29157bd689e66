// Copies of plugin libraries in memory, from which they are loaded.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace dsv3 {

/// Copies the bytes of `library` to memory that nothing can change any more, and returns a path
/// under which dlopen() finds the copy. Nobody can exchange the file between its check and
/// dlopen(). Equal bytes (`digest`) share one copy. The path exists until the process ends.
std::filesystem::path sealed_copy(const std::filesystem::path& library, std::string_view bytes,
                                  const std::string& digest);

/// Loads the libraries that `library` needs from the folders in its RUNPATH that start with
/// $ORIGIN. The dynamic loader would search next to the sealed copy instead. Throws like
/// load_library().
void load_dependencies(const std::filesystem::path& library, std::string_view bytes);

}  // namespace dsv3
