// Where the program called the fake device from.
#pragma once

#include <string>
#include <vector>

namespace fake_cuda {

/// The innermost frames outside LibTorch and the C++ runtime, innermost first, at most `count`:
/// "libdsv3.so dsv3::Trainer::train_step()" for an exported function, "libdsv3.so+0x1234" for
/// others (`addr2line -fCe FILE 0x1234` names them).
std::vector<std::string> call_site(int count);

}  // namespace fake_cuda
