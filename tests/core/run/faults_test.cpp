// Makes system calls fail while status.json or metrics.jsonl is written. Existing content must stay
// intact.
#include <cerrno>
#include <cstring>

#include <catch2/catch.hpp>

#include <dsv3/runtime/metrics_file.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

#include "core/support/temporary_folder.h"

namespace fs = dsv3::fs;

namespace {

/// Runs `work`, makes its n-th system call fail, and returns the number of calls. Errors must name
/// `path` and the cause.
template <class F>
int with_fault(int n, int error, const std::filesystem::path& path, bool& failed, F&& work) {
  int call = 0;
  fs::set_fault_hook([&](fs::Call, const fs::Path&) { return ++call == n ? error : 0; });
  std::string text;
  try {
    work();
  } catch (const dsv3::Error& caught) {
    text = caught.what();
  }
  fs::set_fault_hook({});
  failed = !text.empty();
  if (failed) {
    REQUIRE(text.find(path.string()) != std::string::npos);
    REQUIRE(text.find(std::strerror(error)) != std::string::npos);
  }
  return call;
}

}  // namespace

TEST_CASE("status.json contains the new content, whichever system call of its replacement fails") {
  for (int error : {ENOSPC, EIO, EDQUOT}) {
    bool failed = false;
    int n = 0, calls = 0;
    do {
      ++n;
      INFO("call " << n << " fails with " << std::strerror(error));
      TemporaryFolder folder;
      auto run = dsv3::RunFolder::create(folder / "runs", "a");
      run.write_status("running", {}, 1, "");
      calls =
          with_fault(n, error, run.path(), failed, [&] { run.write_status("finished", 0, 2, ""); });
      REQUIRE_FALSE(failed);
      REQUIRE(dsv3::read_json(run.status()).at("step").get<int>() == 2);
      for (const auto& entry : std::filesystem::directory_iterator(run.path()))
        REQUIRE(entry.path().string().find(".tmp-") == std::string::npos);
    } while (calls >= n);
    REQUIRE(n > 4);
  }
}

TEST_CASE(
    "metrics.jsonl contains only complete lines and can be extended, whichever system call fails") {
  for (int error : {ENOSPC, EIO, EDQUOT}) {
    bool failed = true;
    for (int n = 1; failed; ++n) {
      INFO("call " << n << " fails with " << std::strerror(error));
      TemporaryFolder folder;
      const auto path = folder / "metrics.jsonl";
      const auto event = [](int64_t step) {
        dsv3::Event event;
        event.step = step;
        event.metrics = {{"train/loss", 1.5}};
        return event;
      };
      with_fault(n, error, path, failed, [&] {
        dsv3::MetricsFile file(path);
        for (int64_t step : {1, 2}) {
          auto line = event(step);
          file.append(line);
        }
        file.sync();
      });
      dsv3::MetricsFile reopened(path);
      for (int64_t step : {1, 2, 3}) {
        auto line = event(step);
        reopened.append(line);
      }
      REQUIRE(reopened.lines() == 3);
      std::string expected;
      for (int64_t step : {1, 2, 3}) expected += dsv3::metrics_line(event(step));
      REQUIRE(fs::read(path) == expected);
    }
  }
}
