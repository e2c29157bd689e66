#include "reducer.h"

#include <ATen/ATen.h>

namespace dsv3::data_parallel {

Reduction::Reduction(Segment& segment, int64_t begin, int64_t end, bool over_rows,
                     at::ScalarType dtype, bool is_last)
    : segment_(segment),
      begin_(begin),
      end_(end),
      over_rows_(over_rows),
      is_last_(is_last),
      dtype_(dtype),
      piece_(segment.reduced().narrow(0, begin, end - begin)) {
  start_next();
}

void Reduction::start_row() {
  const at::Tensor parts = segment_.gradients().view({segment_.place().shard_ranks, -1});
  const at::Tensor input = parts.narrow(1, begin_, end_ - begin_).to(dtype_).contiguous();
  if (segment_.frees_gradients()) sum_ = at::empty_like(piece_);
  work_ = segment_.channels().reduce->start_reduce_scatter_sum(sum_.defined() ? sum_ : piece_,
                                                               input.view(-1));
}

at::Tensor Reduction::own_copy() const {
  const int64_t count = (end_ - begin_) / segment_.place().rows();
  return piece_.narrow(0, count * segment_.place().row(), count);
}

void Reduction::start_rows() {
  work_ = segment_.channels().replicate->start_reduce_scatter_sum(own_copy(), piece_.to(dtype_));
}

bool Reduction::start_next() {
  const bool sums_rows = over_rows_ && segment_.place().rows() > 1;
  if (phase_ == Phase::waiting) {
    phase_ = Phase::row;
    if (segment_.sharded()) return start_row(), true;
  }
  if (phase_ == Phase::row && sums_rows) return phase_ = Phase::rows, start_rows(), true;
  if (phase_ == Phase::rows) {
    phase_ = Phase::copies;
    work_ = segment_.channels().replicate->start_all_gather(piece_, own_copy());
    return true;
  }
  phase_ = Phase::done;
  return false;
}

void Reduction::finish() {
  if (!work_) return;
  work_->wait();
  work_.reset();
  if (phase_ != Phase::row) return;
  if (sum_.defined()) piece_.add_(sum_);
  sum_.reset();
  if (is_last_) segment_.release_gradients();
}

bool Reduction::advance() {
  finish();
  return start_next();
}

void Reducer::start(Segment& segment, bool over_rows) {
  const at::NoGradGuard no_grad;
  const Place& place = segment.place();
  const int64_t row_bytes = place.shard_ranks * 4, unit = 32 * place.rows();
  const int64_t step = std::max(settings_.bucket_bytes / row_bytes / unit * unit, unit);
  for (int64_t begin = 0; begin < segment.part(); begin += step) {
    const int64_t end = std::min(begin + step, segment.part());
    reductions_.emplace_back(segment, begin, end, over_rows, settings_.reduce,
                             end == segment.part());
  }
}

void Reducer::advance() {
  const at::NoGradGuard no_grad;
  std::deque<Reduction> unfinished;
  for (Reduction& reduction : reductions_)
    if (reduction.advance()) unfinished.push_back(std::move(reduction));
  reductions_ = std::move(unfinished);
}

void Reducer::finish() {
  while (!reductions_.empty()) advance();
}

}  // namespace dsv3::data_parallel
