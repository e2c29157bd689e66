// Reads parts of a shared library's file without loading it. Safe for arbitrary bytes.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dsv3 {

/// Returns the bytes of section `name` in a 64-bit shared library for this machine; nullopt if
/// there is none. Throws a dsv3::Error (ExitCode::plugin) that contains only the reason if `file`
/// is not such a library or is truncated, which would crash the dynamic loader.
std::optional<std::string_view> elf_section(std::string_view file, std::string_view name);

/// The libraries that a shared library needs.
struct Dependencies {
  std::vector<std::string> names;  ///< such as libfoo.so.1
  std::string run_path;            ///< folders to search, separated by ':'; may contain $ORIGIN
};

/// Throws like elf_section().
Dependencies dependencies_of(std::string_view file);

}  // namespace dsv3
