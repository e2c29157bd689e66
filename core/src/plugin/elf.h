// Reads one section of an ELF file that may be damaged or hostile.
#pragma once

#include <optional>
#include <string_view>

namespace dsv3 {

/// Bytes of section `name` of a 64-bit shared library of this machine; nullopt when it has none.
/// Throws dsv3::Error (ExitCode::plugin) with only the reason when `file` is not such a library or
/// is cut off, which would crash the dynamic loader.
std::optional<std::string_view> elf_section(std::string_view file, std::string_view name);

}  // namespace dsv3
