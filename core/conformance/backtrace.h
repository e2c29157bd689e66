// Call stacks of crashes in checked plugins.
#pragma once

#include <filesystem>
#include <string>

#include <dsv3/support/json.h>

namespace dsv3::conformance {

/// Makes this process send {"frames": [offset, ...]} through the socket when a signal such as
/// SIGSEGV is about to end it. The offsets are the addresses in the plugin library that were being
/// executed, innermost first, relative to the start of the library, which must be loaded.
void report_crashes_to(int socket, const std::filesystem::path& library);

/// Returns a line for each frame with its function and source line, as addr2line (binutils) prints
/// them, or with its offset in the library if addr2line is not installed.
std::string frame_lines(const Json& frames, const std::filesystem::path& library);

}  // namespace dsv3::conformance
