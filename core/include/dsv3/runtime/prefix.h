// Locates this build or installation of dsv3. Files are found relative to it, so that it can be
// moved.
#pragma once

#include <filesystem>

namespace dsv3 {

/// The parent of the folder that contains libdsv3: a build folder or an installation prefix.
std::filesystem::path own_prefix();

}  // namespace dsv3
