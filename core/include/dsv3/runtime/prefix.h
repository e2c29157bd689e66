// Where this dsv3 lies: everything that comes with it is found from there, so that it can be moved.
#pragma once

#include <filesystem>

namespace dsv3 {

/// The folder above the one libdsv3 lies in: a build folder or an installation prefix.
std::filesystem::path own_prefix();

}  // namespace dsv3
