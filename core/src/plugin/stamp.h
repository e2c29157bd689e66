// Reads a plugin library's stamp, a record of how it was built, without running the library's code,
// and compares it with the stamp of this dsv3.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dsv3 {

struct Stamp {
  std::string sdk, headers, cxx_abi, glibcxx_debug, torch, cuda, compiler;
  std::string name, version;
  std::vector<std::string> provides;  ///< "kind/name"
};

/// Reads the stamp from the bytes of a shared library. Throws a dsv3::Error (ExitCode::plugin) that
/// contains only the reason: not a library for this machine, damaged, or not a dsv3 plugin. Safe
/// for arbitrary bytes.
Stamp read_stamp(std::string_view file);

/// Requires the library's bytes to have the SHA-256 that dsv3_add_plugin() appends to the file.
/// Throws like read_stamp().
void check_seal(std::string_view file);

/// The stamp of this libdsv3; name, version and provides are empty.
Stamp host_stamp();

/// Returns one line for each field that makes the plugin incompatible; empty = compatible.
std::vector<std::string> stamp_differences(const Stamp& plugin, const Stamp& host);

}  // namespace dsv3
