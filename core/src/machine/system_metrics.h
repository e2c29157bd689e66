// What the programs of this machine use, as metrics with MLflow's names.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "machine/nvml.h"

namespace dsv3 {

/// Name and value of each metric.
using SystemMetrics = std::vector<std::pair<std::string, double>>;

/// Time since boot, summed over the cores, in clock ticks. Idle time, and time in which a core
/// waits for the disk, is not busy.
struct CpuTime {
  double busy = 0, total = 0;
};
/// Bytes. `used` is what other programs cannot get, as `free` prints it.
struct MemoryUsage {
  double used = 0, total = 0;
};
/// Bytes since boot, over all network interfaces except loopback.
struct Traffic {
  double received = 0, sent = 0;
};

/// Parse /proc/stat, /proc/meminfo and /proc/net/dev. Return nullopt for other text.
std::optional<CpuTime> parse_cpu_time(const std::string& text);
std::optional<MemoryUsage> parse_memory(const std::string& text);
std::optional<Traffic> parse_traffic(const std::string& text);

/// What this machine reports at one time. Values that cannot be determined are missing.
struct SystemSample {
  std::optional<CpuTime> cpu_time;
  std::optional<Traffic> traffic;
  SystemMetrics gauges;  ///< memory, disk and GPUs
};

/// `folder` selects the file system.
SystemSample sample_system(const std::filesystem::path& folder, const Nvml& nvml);

/// Returns one value of each metric for all `samples`, of which there is at least one: the
/// utilization of the CPU between `previous` and the last one, the traffic since `first`, and the
/// means of the gauges.
SystemMetrics system_metrics(const SystemSample& first, const SystemSample& previous,
                             std::span<const SystemSample> samples);

}  // namespace dsv3
