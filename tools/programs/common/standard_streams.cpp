#include "common/standard_streams.h"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <iostream>
#include <mutex>
#include <poll.h>
#include <streambuf>
#include <string>
#include <unistd.h>

#include <dsv3/runtime/failure.h>
#include <dsv3/runtime/logging.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/error.h>

namespace {

constexpr size_t kMaxBuffered = 1 << 16;

/// Writes `text`. Returns 0 or errno.
int write_all(int descriptor, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::write(descriptor, text.data(), text.size());
    if (count >= 0) {
      text.remove_prefix(size_t(count));
    } else if (errno == EAGAIN) {
      pollfd ready{descriptor, POLLOUT, 0};
      ::poll(&ready, 1, -1);
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

/// Makes text printable and writes it to a descriptor. Unlike the buffer it replaces, it knows
/// about errors. Several threads may write.
class StandardBuffer final : public std::streambuf {
 public:
  StandardBuffer(int descriptor, bool throws)
      : descriptor_(descriptor), throws_(throws), terminal_(::isatty(descriptor) == 1) {}

  void set(Output output) { output_ = output; }
  void allow_failure() { throws_ = false; }

 private:
  int_type overflow(int_type c) override {
    const char byte = traits_type::to_char_type(c);
    if (!traits_type::eq_int_type(c, traits_type::eof())) xsputn(&byte, 1);
    return traits_type::not_eof(c);
  }

  std::streamsize xsputn(const char* bytes, std::streamsize count) override {
    const std::lock_guard lock(mutex_);
    text_.append(bytes, size_t(count));
    if (terminal_)
      flush(text_.size());
    else if (text_.size() > kMaxBuffered)  // A hidden value is replaced if it is in one line.
      flush(text_.rfind('\n') + 1);
    return count;
  }

  int sync() override {
    const std::lock_guard lock(mutex_);
    flush(text_.size());
    return 0;
  }

  /// Writes the first `size` bytes. Keeps the start of a character at their end.
  void flush(size_t size) {
    if (output_ != Output::raw)
      size -= dsv3::incomplete_character(std::string_view(text_).substr(0, size));
    const std::string text = text_.substr(0, size);
    text_.erase(0, size);
    const int error = write_all(descriptor_, output_ == Output::printable ? dsv3::printable(text)
                                             : output_ == Output::escaped ? dsv3::escaped(text)
                                                                          : text);
    if (error != 0 && throws_)
      throw dsv3::Error(std::string("cannot write to standard output: ") + std::strerror(error));
  }

  const int descriptor_;
  bool throws_;
  const bool terminal_;
  Output output_ = Output::printable;
  std::mutex mutex_;
  std::string text_;
};

/// Never destroyed, because plugins and threads may write while the process exits.
StandardBuffer& output_buffer() {
  static StandardBuffer& buffer = *new StandardBuffer(STDOUT_FILENO, /*throws=*/true);
  return buffer;
}

/// Opens each standard descriptor that is closed. open() returns the lowest number that is free.
void open_descriptors() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(descriptor, F_GETFD) == -1)
      // Writing to a descriptor that is open for reading fails.
      ::open("/dev/null", descriptor == STDERR_FILENO ? O_WRONLY : O_RDONLY);
}

int fail(const std::string& what, dsv3::ExitCode code) {
  std::cout.exceptions(std::ios::goodbit);  // the first error counts
  std::cerr << dsv3::error_text(what) << '\n';
  return static_cast<int>(code);
}

}  // namespace

int run_program(int argc, char** argv, int (*run)(int, char**)) {
  open_descriptors();
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // sent when a file exceeds `ulimit -f`
  std::cout.rdbuf(&output_buffer());
  std::cout.exceptions(std::ios::badbit);
  std::cerr.rdbuf(new StandardBuffer(STDERR_FILENO, /*throws=*/false));
  try {
    const int code = run(argc, argv);
    std::cout.flush();
    return code;
  } catch (...) {
    return fail(dsv3::current_exception_text(), dsv3::current_exception_code());
  }
}

void set_output(Output output) {
  output_buffer().set(output);
}

void allow_failing_output() {
  output_buffer().allow_failure();
}
