#include <fstream>
#include <sstream>
#include <thread>
#include <unistd.h>

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/version.h>

#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/sdk/version.h>

#include "support/host.h"

namespace dsv3 {
namespace {

/// Returns the output of `git -C folder ARGUMENTS`; nullopt if it fails or git is not installed.
std::optional<std::string> git(const std::filesystem::path& folder, const char* arguments) {
  // These flags keep git from running the repository's hooks and from taking locks in it.
  return output_of("git --no-optional-locks -c core.fsmonitor=false -C " +
                   shell_quoted(folder.string()) + " " + arguments + " </dev/null 2>/dev/null");
}

/// Removes the user and password from a URL.
std::string without_login(const std::string& url) {
  const size_t host = url.find("://") == url.npos ? url.npos : url.find("://") + 3;
  const size_t at = host == url.npos ? url.npos : url.substr(0, url.find('/', host)).rfind('@');
  return at == url.npos ? url : url.substr(0, host) + url.substr(at + 1);
}

Json git_state(const std::filesystem::path& folder) {
  const auto commit = git(folder, "rev-parse HEAD");
  if (!commit) return nullptr;
  const auto changes = git(folder, "status --porcelain --untracked-files=no");
  return {{"folder", git(folder, "rev-parse --show-toplevel").value_or("")},
          {"commit", *commit},
          {"branch", git(folder, "symbolic-ref --short -q HEAD").value_or("")},
          {"remote", without_login(git(folder, "remote get-url origin").value_or(""))},
          {"dirty", changes ? Json(!changes->empty()) : Json()}};
}

/// Returns the value of the first "key : value" line in /proc/cpuinfo; empty if there is none.
std::string cpuinfo(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (line.starts_with(key) && colon != std::string::npos &&
        line.find_first_not_of(" \t", key.size()) == colon)
      return line.substr(std::min(colon + 2, line.size()));
  }
  return "";
}

/// Returns the CPU features that affect the choice of kernels.
Json cpu_features() {
  constexpr std::array relevant{"avx2",     "avx512f",  "avx512_vnni", "avx512_bf16",
                                "amx_tile", "amx_int8", "amx_bf16",    "amx_fp16"};
  Json features = Json::array();
  std::istringstream flags(cpuinfo("flags"));
  for (std::string flag; flags >> flag;)
    if (std::find(relevant.begin(), relevant.end(), flag) != relevant.end())
      features.push_back(flag);
  return features;
}

}  // namespace

Json provenance(const std::vector<std::string>& command, const std::filesystem::path& source) {
  std::error_code ignored;
  return {{"time", utc_text(wall_seconds()).data()},
          {"command", command},
          {"directory", std::filesystem::current_path(ignored).string()},
          {"host", host_name()},
          {"pid", ::getpid()},
          {"dsv3", DSV3_SDK_VERSION},
          {"libtorch", TORCH_VERSION},
          {"compiler", __VERSION__},
          {"git", git_state(source)},
          {"threads", at::get_num_threads()},
          {"cpu",
           {{"model", cpuinfo("model name")},
            {"cores", std::thread::hardware_concurrency()},
            {"capability", at::get_cpu_capability()},
            {"features", cpu_features()}}}};
}

}  // namespace dsv3
