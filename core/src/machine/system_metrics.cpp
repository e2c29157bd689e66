#include "machine/system_metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <sstream>
#include <sys/statvfs.h>

#include <dsv3/support/fs.h>

namespace dsv3 {
namespace {

constexpr double kMegabyte = 1e6;

double percentage(double used, double total) {
  return total > 0 ? 100 * used / total : 0;
}

/// MLflow stores tenths, too.
double rounded(double value) {
  return std::round(10 * value) / 10;
}

/// Returns nullopt if the file cannot be read. Some containers hide files in /proc.
template <class T>
std::optional<T> parsed(const char* file, std::optional<T> (*parse)(const std::string&)) {
  try {
    return parse(fs::read(file));
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

void add(SystemMetrics& metrics, const std::string& name, double value) {
  metrics.emplace_back("system/" + name, value);
}

void add_memory(SystemMetrics& gauges) {
  const auto memory = parsed("/proc/meminfo", parse_memory);
  if (!memory) return;
  add(gauges, "system_memory_usage_megabytes", memory->used / kMegabyte);
  add(gauges, "system_memory_usage_percentage", percentage(memory->used, memory->total));
}

void add_disk(SystemMetrics& gauges, const std::filesystem::path& folder) {
  struct statvfs disk {};
  if (::statvfs(folder.c_str(), &disk) != 0) return;
  const double used = double(disk.f_blocks - disk.f_bfree) * double(disk.f_frsize);
  // To users without privileges, as `df` prints it.
  const double available = double(disk.f_bavail) * double(disk.f_frsize);
  add(gauges, "disk_usage_percentage", percentage(used, used + available));
  add(gauges, "disk_usage_megabytes", used / kMegabyte);
  add(gauges, "disk_available_megabytes", available / kMegabyte);
}

void add_gpu(SystemMetrics& gauges, const std::string& prefix, const GpuUsage& gpu) {
  if (gpu.memory && gpu.memory_total) {
    add(gauges, prefix + "memory_usage_percentage", percentage(*gpu.memory, *gpu.memory_total));
    add(gauges, prefix + "memory_usage_megabytes", *gpu.memory / kMegabyte);
  }
  if (gpu.utilization) add(gauges, prefix + "utilization_percentage", *gpu.utilization);
  if (gpu.power) add(gauges, prefix + "power_usage_watts", *gpu.power);
  if (gpu.power && gpu.power_limit)
    add(gauges, prefix + "power_usage_percentage", percentage(*gpu.power, *gpu.power_limit));
}

void add_cpu(SystemMetrics& metrics, const SystemSample& previous, const SystemSample& last) {
  if (!previous.cpu_time || !last.cpu_time) return;
  const double busy = last.cpu_time->busy - previous.cpu_time->busy;
  const double total = last.cpu_time->total - previous.cpu_time->total;
  if (total <= 0) return;  // less than a tick
  // The kernel's counters are not exact, and some may decrease.
  add(metrics, "cpu_utilization_percentage",
      rounded(std::clamp(percentage(busy, total), 0.0, 100.0)));
}

void add_traffic(SystemMetrics& metrics, const SystemSample& first, const SystemSample& last) {
  if (!first.traffic || !last.traffic) return;
  // An interface that disappears takes its counters along.
  const auto megabytes = [](double before, double now) {
    return std::max(now - before, 0.0) / kMegabyte;
  };
  add(metrics, "network_receive_megabytes",
      megabytes(first.traffic->received, last.traffic->received));
  add(metrics, "network_transmit_megabytes", megabytes(first.traffic->sent, last.traffic->sent));
}

void add_means(SystemMetrics& metrics, std::span<const SystemSample> samples) {
  struct Mean {
    double sum = 0;
    int count = 0;
  };
  std::map<std::string, Mean> means;
  for (const SystemSample& sample : samples)
    for (const auto& [name, value] : sample.gauges) {
      means[name].sum += value;
      ++means[name].count;
    }
  for (const auto& [name, mean] : means) metrics.emplace_back(name, rounded(mean.sum / mean.count));
}

}  // namespace

std::optional<CpuTime> parse_cpu_time(const std::string& text) {
  std::istringstream words(text);
  std::string name;
  double user = 0, nice = 0, system = 0, idle = 0, disk = 0, irq = 0, softirq = 0, stolen = 0;
  words >> name >> user >> nice >> system >> idle >> disk >> irq >> softirq >> stolen;
  if (!words || name != "cpu") return std::nullopt;
  // The two fields that follow, guest time, are part of user and nice.
  const double busy = user + nice + system + irq + softirq + stolen;
  return CpuTime{busy, busy + idle + disk};
}

std::optional<MemoryUsage> parse_memory(const std::string& text) {
  std::istringstream lines(text);
  std::optional<double> total, available;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name;
    double kilobytes = 0;
    if (!(words >> name >> kilobytes)) continue;
    if (name == "MemTotal:") total = 1024 * kilobytes;
    if (name == "MemAvailable:") available = 1024 * kilobytes;
  }
  if (!total || !available) return std::nullopt;
  return MemoryUsage{*total - *available, *total};
}

std::optional<Traffic> parse_traffic(const std::string& text) {
  std::istringstream lines(text);
  std::optional<Traffic> traffic;
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(':');  // the headings have none
    if (colon == line.npos) continue;
    line[colon] = ' ';
    std::istringstream words(line);
    std::string name;
    std::array<double, 9> counters{};  // bytes received, 7 others, bytes sent
    words >> name;
    for (double& counter : counters) words >> counter;
    if (!words) continue;
    if (!traffic) traffic.emplace();
    if (name == "lo") continue;
    traffic->received += counters.front();
    traffic->sent += counters.back();
  }
  return traffic;
}

SystemSample sample_system(const std::filesystem::path& folder, const Nvml& nvml) {
  SystemSample sample{.cpu_time = parsed("/proc/stat", parse_cpu_time),
                      .traffic = parsed("/proc/net/dev", parse_traffic),
                      .gauges = {}};
  add_memory(sample.gauges);
  add_disk(sample.gauges, folder);
  const std::vector<GpuUsage> gpus = nvml.gpus();
  for (size_t i = 0; i < gpus.size(); ++i)
    add_gpu(sample.gauges, "gpu_" + std::to_string(i) + "_", gpus[i]);
  return sample;
}

SystemMetrics system_metrics(const SystemSample& first, const SystemSample& previous,
                             std::span<const SystemSample> samples) {
  SystemMetrics metrics;
  add_cpu(metrics, previous, samples.back());
  add_means(metrics, samples);
  add_traffic(metrics, first, samples.back());
  return metrics;
}

}  // namespace dsv3
