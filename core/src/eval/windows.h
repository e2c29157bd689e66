// Documents cut into windows, and windows packed into rows.
#pragma once

#include <functional>
#include <span>

#include <dsv3/sdk/data.h>

namespace dsv3::eval {

/// Rows of T + 1 tokens that hold whole windows, each under a document id of its own: windows of a
/// row do not see each other.
class WindowPacker {
 public:
  /// Gets a batch of 1 to `rows` rows, and bool [B, T]: the target there is an end-of-text id.
  using Use = std::function<void(const Batch& batch, const at::Tensor& ends)>;
  WindowPacker(int64_t rows, int64_t sequence, Use use);

  /// Cuts a document into windows of at most T predictions. `has_end`: its last id ends the text.
  void add(std::span<const int64_t> document, bool has_end);
  /// Hands out what is left.
  void finish();

 private:
  void add_window(std::span<const int64_t> window, bool has_end);
  void clear();

  int64_t rows_, sequence_;
  Use use_;
  at::Tensor tokens_, ids_, ends_;
  int64_t row_ = 0, column_ = 0;  // where the next window goes
  int64_t windows_ = 0;
};

}  // namespace dsv3::eval
