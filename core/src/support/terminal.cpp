#include "support/terminal.h"

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <string_view>
#include <sys/ioctl.h>
#include <unistd.h>

namespace dsv3 {
namespace {

std::atomic<bool> drawn = false;

void write_all(std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::write(STDERR_FILENO, text.data(), text.size());
    if (count < 0 && errno != EINTR) return;
    if (count > 0) text.remove_prefix(size_t(count));
  }
}

std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

/// Number of columns that a line may fill. Leaves the last column empty, because some terminals
/// start a new row as soon as it is filled.
size_t columns() {
  winsize size{};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col - 1 : 79;
}

/// Drops the fields, separated by two spaces, that do not fit. A cut number would be misleading.
std::string cut(const std::string& line, size_t width) {
  if (line.size() <= width) return line;
  const size_t end = line.rfind("  ", width);
  return line.substr(0, end == line.npos ? width : end);
}

}  // namespace

bool stderr_is_terminal() {
  const std::string_view type = variable("TERM");
  return ::isatty(STDERR_FILENO) == 1 && !type.empty() && type != "dumb";
}

bool stderr_has_colors() {
  return stderr_is_terminal() && variable("NO_COLOR").empty();
}

// The cursor waits in the first column. What others print there, such as the terminal's ^C, then
// wraps no row, and erasing from there to the end of the screen also removes what a narrower
// terminal has wrapped. The next draw asks for the new width, so SIGWINCH needs no handler.
void draw_live_line(const std::string& line) {
  if (line.empty() || !stderr_is_terminal()) return;
  drawn = true;
  write_all(cut(line, columns()) + "\r");
}

void erase_live_line() {
  if (drawn.exchange(false)) write_all("\r\x1b[J");
}

void end_live_line() {
  if (drawn.exchange(false)) write_all("\n");
}

}  // namespace dsv3
