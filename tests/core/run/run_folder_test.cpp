#include <regex>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include <dsv3/runtime/run_folder.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>

#include "core/support/temporary_folder.h"

using dsv3::RunFolder;

namespace {

template <class F>
std::string usage_error(F&& f) {
  try {
    f();
  } catch (const dsv3::Error& error) {
    REQUIRE(error.code() == dsv3::ExitCode::usage);
    return error.what();
  }
  FAIL("no error");
  return "";
}

}  // namespace

TEST_CASE("run names are plain file names") {
  for (const char* name : {"a", "A-b_c.1", "...", ".hidden", "-"}) REQUIRE(dsv3::is_run_name(name));
  REQUIRE(dsv3::is_run_name(std::string(128, 'a')));
  REQUIRE_FALSE(dsv3::is_run_name(std::string(129, 'a')));
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"), std::string("../a"),
        std::string("a b"), std::string("a\n"), std::string("a\0b", 3), std::string("%2e%2e"),
        std::string("\xc3\xa9"), std::string("a\\b"), std::string("~")}) {
    INFO(name);
    REQUIRE_FALSE(dsv3::is_run_name(name));
    TemporaryFolder output;
    if (!name.empty()) {
      usage_error([&] { RunFolder::create(output.path(), name); });
    }
    usage_error([&] { RunFolder::open(output.path(), name); });
    usage_error([&] { RunFolder::open_or_create(output.path(), name); });
    REQUIRE(std::filesystem::is_empty(output.path()));
  }
}

TEST_CASE("a new run requires an unused name") {
  TemporaryFolder output;
  {
    RunFolder run = RunFolder::create(output / "runs", "first");
    REQUIRE(run.created());
    REQUIRE(run.name() == "first");
    REQUIRE(run.path() == output / "runs/first");
    REQUIRE(run.metrics() == output / "runs/first/metrics.jsonl");
  }
  std::string text = usage_error([&] { RunFolder::create(output / "runs", "first"); });
  REQUIRE(text.find("--run_id first") != std::string::npos);
}

TEST_CASE("a run's default name is its experiment, the date and the first unused number") {
  TemporaryFolder output;
  const auto name = [&](const std::string& experiment) {
    return RunFolder::create(output.path(), "", experiment).name();
  };
  const std::string first = name("nano"), second = name("nano");
  REQUIRE(std::regex_match(first, std::regex("nano-20\\d\\d-\\d\\d-\\d\\d-1")));
  REQUIRE(second == first.substr(0, first.size() - 1) + "2");
  REQUIRE(name("a/b c\xc3\xa9").starts_with("a-b-c---20"));
  REQUIRE(dsv3::is_run_name(name(std::string(300, 'x'))));
  REQUIRE(dsv3::is_run_name(name("")));
}

TEST_CASE("resuming requires an existing run, and the error suggests similar names") {
  TemporaryFolder output;
  for (const char* name : {"quick-start", "quick-stop", "other"})
    RunFolder::create(output.path(), name);
  put(output / "quick-star", "a file, not a run");
  REQUIRE_FALSE(RunFolder::open(output.path(), "other").created());
  std::string text = usage_error([&] { RunFolder::open(output.path(), "quick-strat"); });
  REQUIRE(text.find("Did you mean 'quick-start', 'quick-stop'?") != std::string::npos);
  text = usage_error([&] { RunFolder::open(output.path(), "quick"); });
  REQUIRE(text.find("'quick-start'") != std::string::npos);
  text = usage_error([&] { RunFolder::open(output.path(), "zzz"); });
  REQUIRE(text.find("Did you mean") == std::string::npos);
  usage_error([&] { RunFolder::open(output / "nowhere", "zzz"); });
  REQUIRE_FALSE(std::filesystem::exists(output / "zzz"));
}

TEST_CASE("removing a run that never started removes only the folders created for it") {
  TemporaryFolder output;
  std::filesystem::create_directory(output / "mine");
  RunFolder::create(output / "mine/a/b", "first").remove();
  REQUIRE(std::filesystem::is_empty(output / "mine"));
  RunFolder run = RunFolder::create(output / "mine/a/b", "first");
  put(output / "mine/a/notes", "kept");
  run.remove();
  REQUIRE(std::filesystem::exists(output / "mine/a/notes"));
  REQUIRE_FALSE(std::filesystem::exists(output / "mine/a/b"));
}

TEST_CASE("open_or_create opens or creates a run") {
  TemporaryFolder output;
  REQUIRE(RunFolder::open_or_create(output.path(), "a").created());
  REQUIRE_FALSE(RunFolder::open_or_create(output.path(), "a").created());
}

TEST_CASE(
    "only one process at a time can train in a folder, and its lock is released when it exits") {
  TemporaryFolder output;
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  pid_t child = ::fork();
  if (child == 0) {
    RunFolder run = RunFolder::create(output.path(), "a");
    [[maybe_unused]] ssize_t written = ::write(ready[1], "x", 1);
    ::pause();
  }
  char byte;
  REQUIRE(::read(ready[0], &byte, 1) == 1);
  std::string text = usage_error([&] { RunFolder::open(output.path(), "a"); });
  REQUIRE(text.find("process " + std::to_string(child) + " on ") != std::string::npos);
  ::kill(child, SIGKILL);
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  RunFolder run = RunFolder::open(output.path(), "a");
  RunFolder moved = std::move(run);
  text = usage_error([&] { RunFolder::open(output.path(), "a"); });
  REQUIRE(text.find("process " + std::to_string(::getpid())) != std::string::npos);
}

TEST_CASE("opening a run waits if a child of the killed process briefly keeps the lock") {
  TemporaryFolder output;
  pid_t child = ::fork();
  if (child == 0) {
    RunFolder run = RunFolder::create(output.path(), "a");
    if (::fork() == 0) {  // like a child that will run git but has not called exec yet
      ::usleep(50'000);
      ::_exit(0);
    }
    ::kill(::getpid(), SIGKILL);
  }
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  REQUIRE_NOTHROW(RunFolder::open(output.path(), "a"));
}

TEST_CASE("status.json contains state, exit code, step and message") {
  TemporaryFolder output;
  RunFolder run = RunFolder::create(output.path(), "a");
  run.write_status("running", {}, 3, "");
  dsv3::Json status = dsv3::read_json(run.status());
  REQUIRE(status["state"] == "running");
  REQUIRE(status["exit_code"].is_null());
  REQUIRE(status["pid"] == ::getpid());
  run.write_status("failed", 7, 12, "loss is \xff NaN");
  status = dsv3::read_json(run.status());
  REQUIRE(status["exit_code"] == 7);
  REQUIRE(status["step"] == 12);
  REQUIRE(status["message"].get<std::string>().find("NaN") != std::string::npos);
}
