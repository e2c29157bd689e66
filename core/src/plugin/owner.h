// Decides whose files may contain code that this process runs.
#pragma once

#include <filesystem>
#include <string>

namespace dsv3 {

/// Throws a dsv3::Error (ExitCode::plugin) if a user other than root, the current user and the
/// owner of this libdsv3 could change `path`, a canonical path: if one of them owns it or a folder
/// that contains it, or may write there. `what` describes the file, such as "plugin library". A
/// group with the name of the current user, who is its only member, counts as the user.
void require_safe_owner(const std::filesystem::path& path, const std::string& what);

}  // namespace dsv3
