// Stamps of plugin libraries: read from the file's bytes, no code of it run, and compared with this
// dsv3's.
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

/// The stamp in the bytes of a shared library. Throws dsv3::Error (ExitCode::plugin) with the bare
/// reason: not a library of this machine, damaged, not a dsv3 plugin. Safe on any bytes.
Stamp read_stamp(std::string_view file);

/// What this libdsv3 was built with; name, version and provides stay empty.
Stamp host_stamp();

/// One line for each field that keeps the plugin from running here; empty = it fits.
std::vector<std::string> stamp_differences(const Stamp& plugin, const Stamp& host);

}  // namespace dsv3
