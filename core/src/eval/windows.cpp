#include "eval/windows.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace dsv3::eval {

WindowPacker::WindowPacker(int64_t rows, int64_t sequence, Use use)
    : rows_(rows), sequence_(sequence), use_(std::move(use)) {
  clear();
}

void WindowPacker::clear() {
  // Fresh tensors: the batch handed out may still be in use.
  tokens_ = at::zeros({rows_, sequence_ + 1}, at::kLong);
  ids_ = at::full({rows_, sequence_ + 1}, -1, at::kLong);
  ends_ = at::zeros({rows_, sequence_}, at::kBool);
  row_ = column_ = 0;
}

void WindowPacker::add(std::span<const int64_t> document, bool has_end) {
  const int64_t size = std::ssize(document);
  for (int64_t begin = 0; begin + 1 < size; begin += sequence_) {
    const int64_t count = std::min(sequence_ + 1, size - begin);
    add_window(document.subspan(begin, count), has_end && begin + count == size);
  }
}

void WindowPacker::add_window(std::span<const int64_t> window, bool has_end) {
  const int64_t size = std::ssize(window);
  if (column_ + size > sequence_ + 1) {
    ++row_;
    column_ = 0;
  }
  if (row_ == rows_) finish();
  const int64_t at = row_ * (sequence_ + 1) + column_;
  std::copy(window.begin(), window.end(), tokens_.mutable_data_ptr<int64_t>() + at);
  std::fill_n(ids_.mutable_data_ptr<int64_t>() + at, size, windows_++);
  if (has_end) ends_.mutable_data_ptr<bool>()[row_ * sequence_ + column_ + size - 2] = true;
  column_ += size;
}

void WindowPacker::finish() {
  const int64_t used = std::min(rows_, row_ + (column_ > 0 ? 1 : 0));
  if (used > 0)
    use_({tokens_.narrow(0, 0, used), ids_.narrow(0, 0, used)}, ends_.narrow(0, 0, used));
  clear();
}

}  // namespace dsv3::eval
