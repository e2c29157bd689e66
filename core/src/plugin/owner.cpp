#include "plugin/owner.h"

#include <cerrno>
#include <cstring>
#include <dlfcn.h>
#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

/// The owner of libdsv3, whose code runs already.
uid_t owner_of_dsv3() {
  Dl_info info{};
  struct stat state {};
  const bool known = ::dladdr(reinterpret_cast<const void*>(&require_safe_owner), &info) &&
                     info.dli_fname && ::stat(info.dli_fname, &state) == 0;
  return known ? state.st_uid : ::geteuid();
}

bool is_safe_user(uid_t user) {
  static const uid_t installer = owner_of_dsv3();
  return user == 0 || user == ::geteuid() || user == installer;
}

/// Whether a group consists of the current user only. Many distributions create such a group for
/// each user and make new files writable for it.
bool is_private_group(gid_t group) {
  const passwd* user = ::getpwuid(::geteuid());
  const std::string name = user ? user->pw_name : "";
  const struct group* entry = ::getgrgid(group);
  if (!user || !entry || name != entry->gr_name || user->pw_gid != group) return false;
  for (char** member = entry->gr_mem; *member; ++member)
    if (name != *member) return false;
  return true;
}

std::string user_name(uid_t user) {
  const passwd* entry = ::getpwuid(user);
  return entry ? entry->pw_name : "user " + std::to_string(user);
}

/// Returns why other users could change the file or folder; "" = they cannot.
std::string danger(const struct stat& state) {
  if (!is_safe_user(state.st_uid)) return "belongs to " + user_name(state.st_uid);
  // In a folder with the sticky bit, such as /tmp, users can replace only their own files.
  if (S_ISDIR(state.st_mode) && (state.st_mode & S_ISVTX)) return "";
  if (state.st_mode & S_IWOTH) return "is writable for every user";
  if ((state.st_mode & S_IWGRP) && state.st_gid != 0 && !is_private_group(state.st_gid))
    return "is writable for its group";
  return "";
}

}  // namespace

void require_safe_owner(const std::filesystem::path& path, const std::string& what) {
  for (std::filesystem::path at = path;; at = at.parent_path()) {
    struct stat state {};
    if (::stat(at.c_str(), &state) != 0)
      throw Error("cannot open " + what + " " + path.string() + ": " + std::strerror(errno),
                  ExitCode::plugin);
    const std::string cause = danger(state);
    if (!cause.empty())
      throw Error("cannot load " + what + " " + path.string() + ": " +
                      (at == path ? "it " : at.string() + " ") + cause +
                      ", who could put other code there; " +
                      (is_safe_user(state.st_uid) ? "run chmod go-w on it"
                                                  : "copy the library to a folder of your own"),
                  ExitCode::plugin);
    if (at == at.parent_path()) return;
  }
}

}  // namespace dsv3
