// Finds the code that called the fake device.
#pragma once

#include <string>
#include <vector>

namespace fake_cuda {

/// Returns at most `count` stack frames, innermost first, without those in LibTorch and the C++
/// runtime. A frame is "libdsv3.so dsv3::Stepper::step" for an exported function, and
/// "libdsv3.so+0x1234" for others (`addr2line -fCe FILE 0x1234` prints their names).
std::vector<std::string> call_site(int count);

/// Returns the file name of a library from the path that dladdr() returns. dsv3 loads plugins from
/// copies in memory, /proc/<process>/fd/<number>, which have the name of the library.
std::string library_name(const char* path);

}  // namespace fake_cuda
