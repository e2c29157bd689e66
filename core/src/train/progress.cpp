#include "train/progress.h"

#include <cmath>
#include <cstdio>
#include <fmt/format.h>
#include <unistd.h>

#include <dsv3/runtime/logging.h>
#include <dsv3/sdk/log.h>

namespace dsv3 {
namespace {

std::string text_of(const ProgressLine& line) {
  std::string text = fmt::format("step {}/{}  loss {:.4f}", line.step, line.steps, line.loss);
  text += fmt::format("  norm {:.3f}  lr x{:.3f}", line.grad_norm, line.lr_factor);
  if (line.tokens_per_s > 0) text += fmt::format("  {} tok/s", format_count(line.tokens_per_s));
  if (line.mfu > 0) text += fmt::format("  mfu {:.1f} %", 100 * line.mfu);
  if (line.memory_bytes > 0) text += fmt::format("  mem {}", format_bytes(line.memory_bytes));
  if (line.wait_fraction >= 0.005)
    text += fmt::format("  data wait {:.0f} %", 100 * line.wait_fraction);
  if (line.eta_seconds > 0) text += "  eta " + format_duration(line.eta_seconds);
  return text;
}

}  // namespace

Progress::Progress(bool quiet) : visible_(!quiet && isatty(STDERR_FILENO) == 1) {
  if (visible_) set_progress_hooks([this] { clear(); }, [this] { draw(); });
}

Progress::~Progress() {
  if (!visible_) return;
  set_progress_hooks({}, {});
  clear();
}

void Progress::show(const ProgressLine& line, bool logged) {
  const std::string text = text_of(line);
  if (logged) {
    current_.clear();
    log::info(text);
  }
  if (!visible_) return;
  clear();
  current_ = text;
  draw();
}

void Progress::draw() const {
  if (!current_.empty()) std::fprintf(stderr, "\r\x1b[K%s", current_.c_str());
}

void Progress::clear() const {
  if (!current_.empty()) std::fprintf(stderr, "\r\x1b[K");
}

std::string format_duration(double seconds) {
  const auto whole = int64_t(std::llround(seconds));
  if (whole >= 48 * 3600) return fmt::format("{}d{:02}h", whole / 86400, whole / 3600 % 24);
  if (whole >= 3600) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  if (whole >= 60) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}s", whole);
}

std::string format_bytes(double bytes) {
  if (bytes >= 1e9) return fmt::format("{:.2f} GB", bytes / 1e9);
  if (bytes >= 1e6) return fmt::format("{:.0f} MB", bytes / 1e6);
  return fmt::format("{:.0f} kB", bytes / 1e3);
}

std::string format_count(double count) {
  if (count >= 1e12) return fmt::format("{:.2f} T", count / 1e12);
  if (count >= 1e9) return fmt::format("{:.2f} B", count / 1e9);
  if (count >= 1e6) return fmt::format("{:.1f} M", count / 1e6);
  if (count >= 1e4) return fmt::format("{:.1f} k", count / 1e3);
  return fmt::format("{:.0f}", count);
}

}  // namespace dsv3
