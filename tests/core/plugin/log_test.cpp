// Tests logging: levels, the log file and its rotation, and what a file receives.
#include <fcntl.h>
#include <unistd.h>

#include <dsv3/runtime/logging.h>

#include "fixtures.h"

using Catch::Matchers::Contains;
using Catch::Matchers::EndsWith;

namespace {

// Redirects stderr to a file during its lifetime.
class CapturedStderr {
 public:
  explicit CapturedStderr(std::filesystem::path path) : path_(std::move(path)), saved_(::dup(2)) {
    const int file = ::open(path_.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600);
    ::dup2(file, 2);
    ::close(file);
  }
  ~CapturedStderr() {
    ::dup2(saved_, 2);
    ::close(saved_);
  }
  std::string text() const { return get(path_); }

 private:
  std::filesystem::path path_;
  int saved_;
};

}  // namespace

TEST_CASE("the terminal shows lines at or above the log level, and the file contains all lines") {
  TemporaryFolder folder;
  const CapturedStderr terminal(folder / "stderr");
  dsv3::open_log_file(folder / "run.log");
  dsv3::set_log_level("warning");
  dsv3::log::debug("one");
  dsv3::log::info("two {} %s");
  dsv3::log::warning("three");
  dsv3::log::error("four");
  dsv3::set_log_level("info");
  dsv3::close_log_file();
  dsv3::log::info("five");
  CHECK_THAT(terminal.text(), !Contains("one") && !Contains("two") && Contains("warning three\n") &&
                                  Contains("error four\n") && Contains("info five\n"));
  CHECK_THAT(get(folder / "run.log"), Contains("debug one\n") && Contains("info two {} %s\n") &&
                                          Contains("error four\n") && !Contains("five"));
}

TEST_CASE("the log file is rotated at 10 MiB, and the two previous files are retained") {
  TemporaryFolder folder;
  const CapturedStderr terminal(folder / "stderr");
  dsv3::open_log_file(folder / "run.log");
  for (int i = 0; i < 45; ++i)
    dsv3::log::debug(std::string(1 << 20, static_cast<char>('a' + i % 26)));
  dsv3::close_log_file();
  CHECK(std::filesystem::file_size(folder / "run.log") <= (10 << 20));
  CHECK(std::filesystem::file_size(folder / "run.1.log") > (9 << 20));
  CHECK(std::filesystem::file_size(folder / "run.2.log") > (9 << 20));
  CHECK_FALSE(std::filesystem::exists(folder / "run.3.log"));
}

TEST_CASE("newlines at the end are removed, and control characters are escaped") {
  TemporaryFolder folder;
  const CapturedStderr terminal(folder / "stderr");
  dsv3::open_log_file(folder / "run.log");
  dsv3::log::info(
      "a\tb\r\x1b[2Jc\x7f\xc2\x9b"
      "d \xc2\xa9 \xe2\x80\x9c\n  e\n\n");
  dsv3::log::info("\n");
  dsv3::close_log_file();
  for (const std::string& text : {terminal.text(), get(folder / "run.log")}) {
    CHECK_THAT(text,
               Contains("info a\tb\\u000d\\u001b[2Jc\\u007f\\u009bd \xc2\xa9 \xe2\x80\x9c\n  e\n"));
    CHECK_THAT(text, EndsWith("info \n") && !Contains("\n\n"));
  }
}

TEST_CASE("a file contains neither a live line nor escapes") {
  TemporaryFolder folder;
  const CapturedStderr terminal(folder / "stderr");
  dsv3::show_live_line("step 1");
  dsv3::log::warning("seen");
  dsv3::keep_live_line();
  CHECK_THAT(terminal.text(),
             EndsWith("warning seen\n") && !Contains("step 1") && !Contains("\x1b"));
}

TEST_CASE("unknown levels and log files that cannot be opened are errors") {
  CHECK_THAT(error_of([] { dsv3::set_log_level("loud"); }, dsv3::ExitCode::usage),
             Contains("known: debug, info, warning, error"));
  CHECK_THAT(error_of([] { dsv3::open_log_file("/proc/nothing/run.log"); }, dsv3::ExitCode::failed),
             Contains("cannot write the log file /proc/nothing/run.log"));
}
