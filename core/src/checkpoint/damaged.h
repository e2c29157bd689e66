// Says why none of a run's checkpoints can be used.
#pragma once

#include <filesystem>

namespace dsv3 {

/// Throws dsv3::Error (ExitCode::checkpoint) that says why the newest checkpoint in `folder` (a
/// run's checkpoints/) is damaged. Returns if there are no checkpoints or one is intact.
void fail_if_damaged(const std::filesystem::path& folder);

}  // namespace dsv3
