// The progress line on a terminal, and the formats of rates, sizes and times.
#pragma once

#include <cstdint>
#include <string>

namespace dsv3 {

/// Contents of a progress line, which omits rates of 0.
struct ProgressLine {
  int64_t step = 0, steps = 0;
  double loss = 0, lr_factor = 0, grad_norm = 0, tokens_per_s = 0, mfu = 0, wait_fraction = 0,
         eta_seconds = 0;
  int64_t memory_bytes = 0;
};

/// Redraws the line in place on a terminal, and writes `logged` lines to the log as well.
class Progress {
 public:
  explicit Progress(bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void show(const ProgressLine& line, bool logged);

 private:
  void draw() const;
  void clear() const;
  bool visible_;
  std::string current_;
};

/// "1h02m", "3m20s", "12s"
std::string format_duration(double seconds);
/// "1.50 GB", "12 MB"
std::string format_bytes(double bytes);
/// "142.3 M", "1.97 B", "512"
std::string format_count(double count);

}  // namespace dsv3
