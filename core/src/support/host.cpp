#include "support/host.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <fcntl.h>
#include <fstream>
#include <spawn.h>
#include <string_view>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace dsv3 {

double wall_seconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(std::chrono::floor<std::chrono::microseconds>(now)).count();
}

std::array<char, 40> utc_text(double seconds) {
  using namespace std::chrono;
  const sys_seconds time(std::chrono::seconds(static_cast<int64_t>(seconds)));
  const year_month_day date(floor<days>(time));
  const hh_mm_ss clock(time - floor<days>(time));
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), "%04d-%02u-%02uT%02ld:%02ld:%02ldZ", int(date.year()),
                unsigned(date.month()), unsigned(date.day()), clock.hours().count(),
                clock.minutes().count(), clock.seconds().count());
  return text;
}

std::optional<double> seconds_of(const std::string& utc) {
  std::tm parts{};
  const char* const end = ::strptime(utc.c_str(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  if (!end || *end != '\0') return std::nullopt;
  return double(::timegm(&parts));
}

uint64_t available_bytes() {
  std::ifstream machine("/proc/meminfo");
  std::string word;
  uint64_t available = 0, limit = 0, used = 0;
  while (machine >> word)
    if (word == "MemAvailable:" && machine >> available) break;
  available *= 1024;
  std::ifstream limit_file("/sys/fs/cgroup/memory.max"), use_file("/sys/fs/cgroup/memory.current");
  if (limit_file >> limit && use_file >> used)  // the limit may be the word "max"
    available = std::min(available, limit - std::min(limit, used));
  return available;
}

std::string host_name() {
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  return name;
}

namespace {

constexpr std::array<std::string_view, 7> kPublic{
    "PATH", "HOME", "LANG", "LC_ALL", "XDG_CONFIG_HOME", "LD_LIBRARY_PATH", "SUDO_UID"};

/// Whether git needs a variable. Any other one may be a secret, whatever its name is.
bool is_public(std::string_view name) {
  const auto has = [&](const char* word) { return name.find(word) != name.npos; };
  if (name.starts_with("GIT_")) return !has("TOKEN") && !has("SECRET") && !has("PASSWORD");
  return std::ranges::find(kPublic, name) != kPublic.end();
}

std::vector<char*> public_environment() {
  std::vector<char*> entries;
  for (char** entry = environ; *entry; ++entry) {
    const std::string_view text = *entry;
    if (is_public(text.substr(0, text.find('=')))) entries.push_back(*entry);
  }
  entries.push_back(nullptr);
  return entries;
}

/// Starts `sh -c command` with its standard output in `output`. Returns -1 if that fails.
pid_t start_shell(std::string command, int output) {
  char shell[] = "sh", flag[] = "-c";
  char* const arguments[] = {shell, flag, command.data(), nullptr};
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
  pid_t process = -1;
  const int error =
      ::posix_spawn(&process, "/bin/sh", &actions, nullptr, arguments, public_environment().data());
  ::posix_spawn_file_actions_destroy(&actions);
  return error == 0 ? process : -1;
}

}  // namespace

std::optional<std::string> output_of(const std::string& command) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return std::nullopt;
  const pid_t process = start_shell(command, ends[1]);
  ::close(ends[1]);
  std::string output;
  char buffer[4096];
  while (process > 0) {
    const ssize_t count = ::read(ends[0], buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    output.append(buffer, size_t(count));
  }
  ::close(ends[0]);
  int status = -1;
  while (process > 0 && ::waitpid(process, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0) return std::nullopt;
  while (output.ends_with('\n')) output.pop_back();
  return output;
}

}  // namespace dsv3
