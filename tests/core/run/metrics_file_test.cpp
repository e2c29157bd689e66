#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include <catch2/catch.hpp>

#include <dsv3/runtime/metrics_file.h>
#include <dsv3/support/json.h>

#include "core/support/temporary_folder.h"

using dsv3::Event;
using dsv3::MetricsFile;
namespace fs = dsv3::fs;

namespace {

Event event(int64_t step, double loss, const std::string& name = "train/loss") {
  Event event;
  event.step = step;
  event.tokens = 100 * step;
  event.time = 1764000000.123;
  event.metrics = {{name, loss}, {"x", 1}};
  return event;
}

bool append(MetricsFile& file, Event event) {
  return file.append(event);
}

/// Returns the step of each line. Every line must be complete.
std::vector<int64_t> steps_of(const std::filesystem::path& path) {
  std::vector<int64_t> steps;
  std::string text = get(path);
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    REQUIRE(end != std::string::npos);
    steps.push_back(dsv3::Json::parse(text.substr(begin, end - begin))["step"]);
    begin = end + 1;
  }
  return steps;
}

using Steps = std::vector<int64_t>;

}  // namespace

TEST_CASE("a line in metrics.jsonl is one flat JSON object with ordered keys") {
  REQUIRE(dsv3::metrics_line(event(10, 5.1)) ==
          "{\"step\": 10, \"tokens\": 1000, \"time\": 1764000000.123, \"train/loss\": 5.1, \"x\": "
          "1.0}\n");
  REQUIRE(dsv3::metrics_line(event(1, 1, "a\"\n")).find("\"a\\\"\\n\": 1.0") != std::string::npos);
}

TEST_CASE("doubles round-trip exactly") {
  std::mt19937_64 random(1);
  std::vector<double> values{0.0,
                             -0.0,
                             0.1,
                             1.0 / 3,
                             5e-324,
                             1e308,
                             -2.5,
                             1e100,
                             123456.,
                             1e15,
                             1e16,
                             1e17,
                             std::nextafter(1.0, 2.0)};
  while (values.size() < 5000) {
    uint64_t bits = random();
    double value;
    std::memcpy(&value, &bits, 8);
    if (std::isfinite(value)) values.push_back(value);
  }
  for (double value : values) {
    std::string line = dsv3::metrics_line(event(1, value));
    double read = dsv3::parse_json(line, "line")["train/loss"].get<double>();
    REQUIRE(std::memcmp(&read, &value, 8) == 0);
  }
}

TEST_CASE("numbers that JSON cannot represent are written as strings") {
  const double infinity = std::numeric_limits<double>::infinity();
  auto text = [](double value) {
    return dsv3::Json::parse(dsv3::metrics_line(event(1, value)))["train/loss"];
  };
  REQUIRE(text(std::nan("")) == "NaN");
  REQUIRE(text(infinity) == "Infinity");
  REQUIRE(text(-infinity) == "-Infinity");
}

TEST_CASE("line ids continue when the file is reopened") {
  TemporaryFolder folder;
  {
    MetricsFile file(folder / "m");
    REQUIRE(file.last_step() == -1);
    Event first = event(1, 1), second = event(2, 1);
    REQUIRE(file.append(first));
    REQUIRE(file.append(second));
    REQUIRE(first.id == 0);
    REQUIRE(second.id == 1);
  }
  MetricsFile file(folder / "m");
  REQUIRE(file.last_step() == 2);
  REQUIRE(file.lines() == 2);
  Event third = event(3, 1);
  REQUIRE(file.append(third));
  REQUIRE(third.id == 2);
  REQUIRE(steps_of(folder / "m") == Steps{1, 2, 3});
}

TEST_CASE("if a step is repeated, only its first line is kept") {
  TemporaryFolder folder;
  {
    MetricsFile file(folder / "m");
    for (int64_t step : {1, 2, 3}) append(file, event(step, 1));
    REQUIRE(append(file, event(4, 1, "train/loss")));
  }
  std::string before = get(folder / "m");
  MetricsFile file(folder / "m");
  for (int64_t step : {2, 3, 4}) REQUIRE_FALSE(append(file, event(step, 2)));
  REQUIRE(get(folder / "m") == before);
  // The first process was killed between the two lines of step 4.
  REQUIRE(append(file, event(4, 2, "val/loss")));
  REQUIRE_FALSE(append(file, event(4, 3, "val/loss")));
  REQUIRE(append(file, event(5, 2)));
  REQUIRE(steps_of(folder / "m") == Steps{1, 2, 3, 4, 4, 5});
  MetricsFile reopened(folder / "m");
  REQUIRE_FALSE(append(reopened, event(4, 9, "other")));
  REQUIRE(reopened.lines() == 6);
}

TEST_CASE("if the last step has two lines, neither is written again after the file is reopened") {
  TemporaryFolder folder;
  {
    MetricsFile file(folder / "m");
    append(file, event(4, 1, "train/loss"));
    append(file, event(4, 1, "val/loss"));
  }
  MetricsFile file(folder / "m");
  REQUIRE_FALSE(append(file, event(4, 2, "train/loss")));
  REQUIRE_FALSE(append(file, event(4, 2, "val/loss")));
}

TEST_CASE("a line torn at any byte is removed and written again") {
  TemporaryFolder folder;
  std::string head = dsv3::metrics_line(event(1, 1)), tail = dsv3::metrics_line(event(2, 1));
  for (const std::string& before : {std::string(), head}) {
    for (size_t size = 1; size < tail.size(); ++size) {
      put(folder / "m", before + tail.substr(0, size));
      MetricsFile file(folder / "m");
      REQUIRE(get(folder / "m") == before);
      REQUIRE(append(file, event(2, 1)));
      REQUIRE(get(folder / "m") == before + tail);
    }
  }
  put(folder / "m", head + std::string(4096, '\0'));  // zeros, as after a power cut
  REQUIRE(MetricsFile(folder / "m").lines() == 1);
  put(folder / "m", head + std::string(100, '\0') + "\n\n");
  REQUIRE(MetricsFile(folder / "m").lines() == 1);
}

TEST_CASE("each line is written by a single call, and a failed write leaves no partial line") {
  TemporaryFolder folder;
  MetricsFile file(folder / "m");
  int writes = 0, error = 0;
  fs::set_fault_hook([&](fs::Call call, const fs::Path&) {
    writes += call == fs::Call::write;
    return call == fs::Call::write ? error : 0;
  });
  append(file, event(1, 1));
  REQUIRE(writes == 1);
  error = ENOSPC;
  REQUIRE_THROWS(append(file, event(2, 1)));
  fs::set_fault_hook({});
  std::string half = dsv3::metrics_line(event(2, 1))
                         .substr(0, 20);  // as if the disk had accepted only part of the line
  fs::Writer::append(folder / "m").write(half);
  REQUIRE(append(file, event(2, 1)));
  REQUIRE(steps_of(folder / "m") == Steps{1, 2});
  file.sync();
}
