#include <array>
#include <chrono>
#include <ctime>
#include <fcntl.h>
#include <fstream>
#include <optional>
#include <spawn.h>
#include <sstream>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/version.h>

#include <dsv3/runtime/provenance.h>

#if __has_include(<dsv3/sdk/version.h>)
#include <dsv3/sdk/version.h>
#endif

extern char** environ;

namespace dsv3 {
namespace {

/// What `git -C folder ...` prints, run without a shell; nullopt when it fails or there is no git.
std::optional<std::string> git(const std::filesystem::path& folder,
                               const std::vector<std::string>& arguments) {
  // No hooks of the repository, no lock files in it.
  std::vector<std::string> words{"git", "--no-optional-locks", "-c", "core.fsmonitor=false",
                                 "-C",  folder.string()};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);

  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return std::nullopt;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  pid_t child = 0;
  int error = ::posix_spawnp(&child, "git", &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);

  std::string output;
  if (error == 0) {
    char buffer[4096];
    for (;;) {
      ssize_t count = ::read(ends[0], buffer, sizeof buffer);
      if (count == -1 && errno == EINTR) continue;
      if (count <= 0) break;
      output.append(buffer, static_cast<size_t>(count));
    }
  }
  ::close(ends[0]);
  if (error != 0) return std::nullopt;
  int status = 0;
  while (::waitpid(child, &status, 0) == -1 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return std::nullopt;
  while (output.ends_with('\n')) output.pop_back();
  return output;
}

Json git_state(const std::filesystem::path& folder) {
  auto commit = git(folder, {"rev-parse", "HEAD"});
  if (!commit) return nullptr;
  auto changes = git(folder, {"status", "--porcelain", "--untracked-files=no"});
  return {{"folder", git(folder, {"rev-parse", "--show-toplevel"}).value_or("")},
          {"commit", *commit},
          {"dirty", changes ? Json(!changes->empty()) : Json()}};
}

/// The first "key : value" line of /proc/cpuinfo.
std::string cpuinfo(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    size_t colon = line.find(':');
    if (line.starts_with(key) && colon != std::string::npos &&
        line.find_first_not_of(" \t", key.size()) == colon) {
      return line.substr(std::min(colon + 2, line.size()));
    }
  }
  return "";
}

/// The CPU's features that choose between kernels.
Json cpu_features() {
  constexpr std::array interesting{"avx2",     "avx512f",  "avx512_vnni", "avx512_bf16",
                                   "amx_tile", "amx_int8", "amx_bf16",    "amx_fp16"};
  Json features = Json::array();
  std::istringstream flags(cpuinfo("flags"));
  for (std::string flag; flags >> flag;) {
    if (std::find(interesting.begin(), interesting.end(), flag) != interesting.end()) {
      features.push_back(flag);
    }
  }
  return features;
}

Json dsv3_version() {
#ifdef DSV3_SDK_VERSION
  return DSV3_SDK_VERSION;
#else
  return nullptr;
#endif
}

}  // namespace

Json provenance(const std::vector<std::string>& command, const std::filesystem::path& source) {
  auto now = std::chrono::system_clock::now().time_since_epoch();
  std::error_code ignored;
  return {{"time", utc_text(std::chrono::duration<double>(now).count())},
          {"command", command},
          {"directory", std::filesystem::current_path(ignored).string()},
          {"host", host_name()},
          {"pid", ::getpid()},
          {"dsv3", dsv3_version()},
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

std::string host_name() {
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  return name;
}

std::string utc_text(double seconds) {
  std::time_t time = static_cast<std::time_t>(seconds);
  std::tm parts{};
  ::gmtime_r(&time, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace dsv3
