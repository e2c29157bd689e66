#include "train/progress.h"

#include <fmt/format.h>

#include <dsv3/runtime/logging.h>
#include <dsv3/sdk/log.h>

namespace dsv3 {
namespace {

/// The fields are in order of importance, because a narrow terminal shows only the first ones.
std::string text_of(const ProgressLine& line) {
  std::string text = fmt::format("step {}/{}  loss {:.4f}", line.step, line.steps, line.loss);
  if (line.eta_seconds > 0) text += "  eta " + format_duration(line.eta_seconds);
  text += fmt::format("  norm {:.3f}  lr x{:.3f}", line.grad_norm, line.lr_factor);
  if (line.tokens_per_s > 0) text += fmt::format("  {} tok/s", format_count(line.tokens_per_s));
  if (line.mfu > 0)
    text += fmt::format("  mfu {:.1f} %", 100 * line.mfu);
  else if (line.flops_per_s > 0)
    text += fmt::format("  {}/s", format_flops(line.flops_per_s));
  if (line.memory_bytes > 0) text += fmt::format("  mem {}", format_bytes(line.memory_bytes));
  if (line.wait_fraction >= 0.005)
    text += fmt::format("  data wait {:.0f} %", 100 * line.wait_fraction);
  return text;
}

}  // namespace

void Progress::show(const ProgressLine& line, bool logged) {
  const std::string text = text_of(line);
  if (logged) {
    show_live_line("");
    log::info(text);
  }
  // A live copy of a line in the log would be redundant.
  const bool in_log = logged && terminal_shows(log::Level::info);
  if (!quiet_ && !in_log) show_live_line(text);
}

void Progress::finish() {
  keep_live_line();
}

}  // namespace dsv3
