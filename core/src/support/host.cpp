#include "support/host.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <unistd.h>

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

double seconds_of(const std::string& utc) {
  using namespace std::chrono;
  int y = 0, h = 0, min = 0, s = 0;
  unsigned m = 0, d = 0;
  if (std::sscanf(utc.c_str(), "%d-%u-%uT%d:%d:%dZ", &y, &m, &d, &h, &min, &s) != 6) return 0;
  const sys_days date(year(y) / month(m) / day(d));
  return double((date.time_since_epoch() + hours(h) + minutes(min) + seconds(s)).count());
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

std::optional<std::string> output_of(const std::string& command) {
  std::FILE* pipe = ::popen(command.c_str(), "re");
  if (!pipe) return std::nullopt;
  std::string output;
  char buffer[4096];
  while (const size_t count = std::fread(buffer, 1, sizeof buffer, pipe))
    output.append(buffer, count);
  if (::pclose(pipe) != 0) return std::nullopt;
  while (output.ends_with('\n')) output.pop_back();
  return output;
}

}  // namespace dsv3
