#include "machine/system_metrics.h"

#include <map>
#include <unistd.h>

#include <catch2/catch.hpp>

#include <dsv3/support/fs.h>

#include "machine/system_sampler.h"

using namespace dsv3;

namespace {

constexpr const char* kStat =
    "cpu  1000 200 300 5000 400 50 60 70 80 90\n"
    "cpu0 500 100 150 2500 200 25 30 35 40 45\n"
    "intr 1234 5 6\n"
    "ctxt 99\n";
constexpr const char* kMemory =
    "MemTotal:       16000000 kB\n"
    "MemFree:         1000000 kB\n"
    "MemAvailable:   12000000 kB\n"
    "HugePages_Total:       0\n"
    "DirectMap4k:      200000 kB\n";
constexpr const char* kTraffic =
    "Inter-|   Receive                                                |  Transmit\n"
    " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n"
    "    lo: 7000000      10    0    0    0     0          0         0  7000000      10    0\n"
    "  eth0: 3000000      20    1    2    0     0          0         5  1500000      30    0\n"
    "enp4s0:4000000       40    0    0    0     0          0         0   500000      50    0\n";

std::map<std::string, double> by_name(const SystemMetrics& metrics) {
  return {metrics.begin(), metrics.end()};
}

SystemSample sample(double busy, double total, double received, SystemMetrics gauges) {
  return {.cpu_time = CpuTime{busy, total},
          .traffic = Traffic{received, 2 * received},
          .gauges = std::move(gauges)};
}

}  // namespace

TEST_CASE("CPU time is busy except when it is idle or waits for the disk") {
  const auto time = parse_cpu_time(kStat);
  REQUIRE(time);
  CHECK(time->busy == 1000 + 200 + 300 + 50 + 60 + 70);
  CHECK(time->total == time->busy + 5000 + 400);
  for (const char* text : {"", "cpu", "cpu  1 2 3", "cpu0 1 2 3 4 5 6 7 8", "cpu a b c d e f g h"})
    CHECK_FALSE(parse_cpu_time(text));
}

TEST_CASE("memory that the kernel can give to programs is not used") {
  const auto memory = parse_memory(kMemory);
  REQUIRE(memory);
  CHECK(memory->total == 16'000'000 * 1024.0);
  CHECK(memory->used == 4'000'000 * 1024.0);
  for (const char* text : {"", "MemTotal: 5 kB\n", "MemAvailable: 5 kB\n", "MemTotal: x kB\n"})
    CHECK_FALSE(parse_memory(text));
}

TEST_CASE("traffic is counted on all interfaces except loopback") {
  const auto traffic = parse_traffic(kTraffic);
  REQUIRE(traffic);
  CHECK(traffic->received == 7'000'000);
  CHECK(traffic->sent == 2'000'000);
  const auto none = parse_traffic("  lo: 7 1 0 0 0 0 0 0 8 1 0 0 0 0 0 0\n");
  REQUIRE(none);
  CHECK(none->received == 0);
  CHECK(none->sent == 0);
  for (const char* text : {"", "Inter-| Receive\n", "eth0: 1 2 3\n", "eth0: a b c d e f g h i\n"})
    CHECK_FALSE(parse_traffic(text));
}

TEST_CASE("samples become one value of each metric") {
  const SystemSample first = sample(50, 100, 1e6, {});
  const SystemSample previous = sample(100, 200, 2e6, {{"system/gauge", 1000}});
  const std::vector<SystemSample> samples{
      sample(130, 300, 3e6, {{"system/gauge", 1}, {"system/rare", 5}}),
      sample(150, 400, 4.5e6, {{"system/gauge", 2.26}})};
  const auto metrics = by_name(system_metrics(first, previous, samples));
  CHECK(metrics == std::map<std::string, double>{{"system/cpu_utilization_percentage", 25},
                                                 {"system/network_receive_megabytes", 3.5},
                                                 {"system/network_transmit_megabytes", 7},
                                                 {"system/gauge", 1.6},
                                                 {"system/rare", 5}});
}

TEST_CASE("values that cannot be determined are missing") {
  const std::vector<SystemSample> none(1);
  CHECK(system_metrics({}, {}, none).empty());
  const SystemSample before = sample(100, 200, 5e6, {});
  // Less than a tick later, and an interface has disappeared.
  const std::vector<SystemSample> next{sample(100, 200, 1e6, {})};
  const auto metrics = by_name(system_metrics(before, before, next));
  CHECK(metrics == std::map<std::string, double>{{"system/network_receive_megabytes", 0},
                                                 {"system/network_transmit_megabytes", 0}});
}

TEST_CASE("a last sample has all metrics of this machine") {
  SystemSampler sampler("/", 86'400);
  CHECK(sampler.take().empty());
  ::usleep(200'000);  // 20 ticks
  const auto metrics = by_name(sampler.take_last());
  for (const char* name :
       {"cpu_utilization_percentage", "system_memory_usage_percentage", "disk_usage_percentage"}) {
    INFO(name);
    REQUIRE(metrics.contains(std::string("system/") + name));
    CHECK(metrics.at(std::string("system/") + name) >= 0);
    CHECK(metrics.at(std::string("system/") + name) <= 100);
  }
  const auto memory = parse_memory(fs::read("/proc/meminfo"));
  REQUIRE(memory);
  CHECK(metrics.at("system/system_memory_usage_megabytes") > 0);
  CHECK(metrics.at("system/system_memory_usage_megabytes") < memory->total / 1e6);
  CHECK(metrics.at("system/disk_usage_megabytes") > 0);
  CHECK(metrics.contains("system/disk_available_megabytes"));
  CHECK(metrics.at("system/network_receive_megabytes") >= 0);
  CHECK(metrics.at("system/network_transmit_megabytes") >= 0);
  CHECK(sampler.take().empty());
}

TEST_CASE("samples are taken at each interval, and each belongs to one call only") {
  SystemSampler sampler("/", 0.01);
  for (int i = 0; i < 3; ++i) {
    SystemMetrics metrics;
    while (metrics.empty()) {
      ::usleep(1000);
      metrics = sampler.take();
    }
    CHECK(by_name(metrics).contains("system/disk_usage_percentage"));
  }
}

TEST_CASE("a folder that does not exist has no disk") {
  const SystemSample sample = sample_system("/no/such/folder", Nvml());
  for (const auto& [name, value] : sample.gauges) CHECK(name.find("disk") == name.npos);
  CHECK(sample.cpu_time);
}
