// A reader of ELF files that trusts nothing: enough to get one section out of a shared library.
#pragma once

#include <optional>
#include <string_view>

namespace dsv3 {

/// Bytes of section `name` of a 64-bit shared library of this machine, nullopt when it has none.
/// Throws dsv3::Error (ExitCode::plugin) with the bare reason when `file` is no such library or
/// ends early, which the dynamic loader would answer with a signal.
std::optional<std::string_view> elf_section(std::string_view file, std::string_view name);

}  // namespace dsv3
