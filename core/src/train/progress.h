// The progress line on a terminal.
#pragma once

#include <cstdint>

#include <dsv3/runtime/quantities.h>

namespace dsv3 {

/// Contents of a progress line, which omits rates of 0.
struct ProgressLine {
  int64_t step = 0, steps = 0;
  double loss = 0, lr_factor = 0, grad_norm = 0, tokens_per_s = 0, mfu = 0, wait_fraction = 0,
         eta_seconds = 0;
  int64_t memory_bytes = 0;
  double flops_per_s = 0;  ///< the model's; shown if `mfu` is 0
};

/// Shows the state of training in the terminal's last line, and writes `logged` lines to the log.
class Progress {
 public:
  explicit Progress(bool quiet) : quiet_(quiet) {}
  ~Progress() { finish(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void show(const ProgressLine& line, bool logged);
  /// Leaves the last line on the screen, above all later lines.
  void finish();

 private:
  bool quiet_;
};

}  // namespace dsv3
