#include <cmath>
#include <fcntl.h>
#include <filesystem>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include <dsv3/runtime/run_record.h>
#include <dsv3/sdk/error.h>

#include "core/support/temporary_folder.h"

namespace {

std::string line(int step, double time, const std::string& more) {
  return "{\"step\": " + std::to_string(step) + ", \"tokens\": " + std::to_string(step * 10) +
         ", \"time\": " + std::to_string(time) + (more.empty() ? "" : ", " + more) + "}\n";
}

}  // namespace

TEST_CASE("metrics are read with NaN, late metrics, damaged lines and a torn end") {
  const TemporaryFolder folder;
  put(folder / "metrics.jsonl",
      line(1, 5, R"("train/loss": 4.5)") + line(2, 6, R"("train/loss": "NaN", "b": "-Infinity")") +
          "not JSON\n{\"step\": \"x\"}\n[1]\n7\n\n" + R"({"step": 3, "a": {"b": 1}})" + "\n" +
          line(3, 7, R"("late": 1e3)") + R"({"step": 4, "train/lo)");
  const dsv3::RunMetrics metrics = dsv3::read_metrics(folder.path());
  CHECK(metrics.damaged_lines == 6);
  CHECK(metrics.tokens.y == std::vector<double>{10, 20, 30});
  const dsv3::Series& loss = metrics.by_name.at("train/loss");
  CHECK(loss.x == std::vector<double>{1, 2});
  CHECK(std::isnan(loss.y[1]));
  CHECK(metrics.last("b") == -INFINITY);
  CHECK(metrics.by_name.at("late").x == std::vector<double>{3});
  CHECK(std::isnan(metrics.last("never")));
}

TEST_CASE("later lines of the same or an earlier step replace earlier ones") {
  const TemporaryFolder folder;
  put(folder / "metrics.jsonl", line(1, 1, R"("l": 1)") + line(2, 2, R"("l": 2)") +
                                    line(3, 3, R"("l": 3)") + line(2, 9, R"("l": 20)") +
                                    line(2, 9, R"("v": 5)") + line(3, 9, R"("l": 30)"));
  const dsv3::RunMetrics metrics = dsv3::read_metrics(folder.path());
  CHECK(metrics.by_name.at("l").x == std::vector<double>{1, 2, 3});
  CHECK(metrics.by_name.at("l").y == std::vector<double>{1, 20, 30});
  CHECK(metrics.by_name.at("v").y == std::vector<double>{5});
}

TEST_CASE("the tail of a long file has the last values") {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 1; i <= 2000; ++i) text += line(i, i, "\"l\": " + std::to_string(i));
  put(folder / "metrics.jsonl", text);
  const dsv3::RunMetrics tail = dsv3::read_metrics(folder.path(), 1000);
  CHECK(tail.damaged_lines == 0);
  CHECK(tail.last("l") == 2000);
  CHECK(tail.tokens.x.size() < 50);
  CHECK(dsv3::read_metrics(folder.path()).tokens.x.size() == 2000);
}

TEST_CASE("a FIFO or a link in a run folder is reported and not read") {
  const TemporaryFolder folder;
  REQUIRE(::mkfifo((folder.path() / "metrics.jsonl").c_str(), 0600) == 0);
  REQUIRE(::mkfifo((folder.path() / "status.json").c_str(), 0600) == 0);
  std::filesystem::create_symlink("/etc/hostname", folder.path() / "config.yaml");
  const dsv3::RunRecord run = dsv3::read_run(folder.path(), dsv3::ReadMetrics::all);
  CHECK(run.state == "damaged");
  CHECK(run.problems.size() == 4);
  CHECK_THROWS_WITH(dsv3::read_metrics(folder.path()), Catch::Contains("is not a regular file"));
}

TEST_CASE("a run that says running is running only while a process holds its lock") {
  const TemporaryFolder folder;
  put(folder / "status.json", R"({"state": "running", "step": 3, "time": "2026-01-01T00:00:00Z"})");
  CHECK(dsv3::read_run(folder.path(), dsv3::ReadMetrics::last).state == "crashed");
  CHECK_FALSE(std::filesystem::exists(folder.path() / "lock"));
  put(folder / "lock", "");
  const int fd = ::open((folder.path() / "lock").c_str(), O_RDWR | O_CLOEXEC);
  REQUIRE(::flock(fd, LOCK_EX | LOCK_NB) == 0);
  CHECK(dsv3::read_run(folder.path(), dsv3::ReadMetrics::last).state == "running");
  CHECK(::flock(fd, LOCK_EX | LOCK_NB) == 0);  // the lock was not lost
  ::close(fd);
  CHECK(dsv3::read_run(folder.path(), dsv3::ReadMetrics::last).state == "crashed");
}

TEST_CASE("the duration leaves out pauses between the processes of a run") {
  const TemporaryFolder folder;
  // Starts at 00:00:00, writes until second 20, resumes at second 100, writes until second 130.
  put(folder / "provenance.json",
      R"({"time": "1970-01-01T00:00:00Z", "resumes": [{"time": "1970-01-01T00:01:40Z"}]})");
  put(folder / "metrics.jsonl",
      line(1, 10, "") + line(2, 20, "") + line(3, 115, "") + line(4, 130, ""));
  put(folder / "status.json",
      R"({"state": "finished", "step": 4, "time": "1970-01-01T00:02:15Z"})");
  const dsv3::RunRecord run = dsv3::read_run(folder.path(), dsv3::ReadMetrics::last);
  CHECK(dsv3::running_time(run).y == std::vector<double>{10, 20, 35, 50});
  CHECK(run.duration == 55);
  CHECK(run.started == 0);
  CHECK(run.tokens == 40);
}
