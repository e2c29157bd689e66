#include "matrices.h"

#include <algorithm>
#include <numeric>

#include <ATen/ATen.h>

namespace dsv3::data_parallel {
namespace {

/// Values of an owner that are updated in one round.
constexpr int64_t kRoundBytes = int64_t{16} << 20;

/// Floating-point operations of an iteration of Newton-Schulz, up to a factor.
double work_of(const Matrix& matrix) {
  const double cols = double(matrix.range.box_shape.empty() ? 1 : matrix.range.box_shape.back());
  const double rows = double(matrix.size()) / cols;
  return rows * cols * std::min(rows, cols);
}

/// Writes tensors one after another into a buffer of the communicator's device.
class Packer {
 public:
  explicit Packer(at::Tensor buffer) : buffer_(std::move(buffer)) {}
  void add(const at::Tensor& piece) {
    buffer_.narrow(0, position_, piece.numel()).copy_(piece);
    position_ += piece.numel();
  }
  at::Tensor take(int64_t count) {
    position_ += count;
    return buffer_.narrow(0, position_ - count, count);
  }

 private:
  at::Tensor buffer_;
  int64_t position_ = 0;
};

int64_t sum(const std::vector<int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), int64_t{0});
}

int64_t size_of(const Range& range) {
  return range.end - range.begin;
}

bool in_row(int64_t replica, const Place& place) {
  return replica / place.shard_ranks == place.row();
}

/// The elements of `matrix` that are in the shard of a replica.
Range part_of(const Matrix& matrix, int64_t replica) {
  const Segment& segment = *matrix.segment;
  const int64_t first =
      segment.part() * (replica % segment.place().shard_ranks) - segment.offset(matrix.param);
  Range part = matrix.range;
  part.begin = std::clamp(first, matrix.range.begin, matrix.range.end);
  part.end = std::clamp(first + segment.part(), part.begin, matrix.range.end);
  return part;
}

at::Tensor slice(const at::Tensor& matrix, const Matrix& whole, const Range& part) {
  return matrix.view(-1).narrow(0, part.begin - whole.range.begin, size_of(part));
}

/// `work` is indexed by rank of the run.
void assign_owners(std::vector<Matrix>& matrices, std::vector<double>& work) {
  std::vector<Matrix*> by_work;
  for (Matrix& matrix : matrices) by_work.push_back(&matrix);
  std::ranges::stable_sort(
      by_work, [](const Matrix* a, const Matrix* b) { return work_of(*a) > work_of(*b); });
  for (Matrix* matrix : by_work) {
    const auto& replicas = matrix->segment->place().replicas;
    const auto least =
        std::ranges::min_element(replicas, {}, [&](int64_t rank) { return work[size_t(rank)]; });
    matrix->owner = least - replicas.begin();
    work[size_t(*least)] += work_of(*matrix);
  }
}

void add(std::vector<Matrices>& all, const Segment& segment, const std::vector<GroupSpec>& groups) {
  for (size_t i = 0; i < segment.params().size(); ++i) {
    const UnitParam& param = segment.params()[i];
    if (!groups.at(size_t(param.group)).whole_matrices) continue;
    for (const Range& range : dsv3::update_ranges(param, true))
      all[size_t(param.group)][param.shards].push_back({&segment, i, range});
  }
}

}  // namespace

std::vector<Matrices> find_matrices(const std::vector<const Segment*>& segments,
                                    const std::vector<GroupSpec>& groups, int64_t ranks) {
  std::vector<Matrices> all(groups.size());
  for (const Segment* segment : segments) add(all, *segment, groups);
  std::vector<double> work(size_t(ranks), 0);
  for (Matrices& group : all)
    for (auto& [slices, matrices] : group) assign_owners(matrices, work);
  return all;
}

MatrixUpdate::MatrixUpdate(std::span<const Matrix> matrices, at::Device device)
    : matrices_(matrices), device_(device) {
  if (matrices.empty()) return;
  place_ = &matrices.front().segment->place();
  has_gradients_ = matrices.front().segment->reduced().defined();
  make_rounds();
}

/// A single rank updates everything at once, because nothing has to be moved.
void MatrixUpdate::make_rounds() {
  const int64_t limit = place_->size() == 1 ? std::numeric_limits<int64_t>::max() : kRoundBytes / 4;
  struct Last {
    size_t round = 0;
    int64_t elements = 0;
  };
  std::vector<Last> last_of(place_->replicas.size());  // by owner
  for (const Matrix& matrix : matrices_) {
    Last& last = last_of[size_t(matrix.owner)];
    if (last.elements > 0 && last.elements + matrix.size() > limit) last = {last.round + 1, 0};
    last.elements += matrix.size();
    rounds_.resize(std::max(rounds_.size(), last.round + 1));
    rounds_[last.round].push_back(&matrix);
  }
}

int64_t MatrixUpdate::Sizes::bytes() const {
  return 4 * (sum(sent) + sum(received));
}

MatrixUpdate::Sizes MatrixUpdate::sizes_of_inputs(const Round& round, int64_t copies) const {
  const std::vector<int64_t> none(size_t(place_->size()), 0);
  Sizes sizes{none, none};
  if (place_->shard_ranks == 1) return sizes;
  for (const Matrix* matrix : round) {
    if (in_row(matrix->owner, *place_))
      sizes.sent[size_t(matrix->owner)] += copies * size_of(part_of(*matrix, place_->index));
    for (int64_t replica = 0; replica < place_->size(); ++replica)
      if (is_owned(*matrix) && in_row(replica, *place_))
        sizes.received[size_t(replica)] += copies * size_of(part_of(*matrix, replica));
  }
  return sizes;
}

MatrixUpdate::Exchange MatrixUpdate::allocate(const Sizes& sizes, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  return {at::empty({sum(sizes.sent)}, options), at::empty({sum(sizes.received)}, options),
          nullptr};
}

/// Sends this rank's parts of gradients and values to the owners in its row.
MatrixUpdate::Exchange MatrixUpdate::start_inputs(const Round& round) const {
  if (place_->shard_ranks == 1) return {};
  const Sizes sizes = sizes_of_inputs(round, has_gradients_ ? 2 : 1);
  Exchange exchange = allocate(sizes, device_);
  Packer packer(exchange.input);
  for (int64_t owner = 0; owner < place_->size(); ++owner)
    for (const Matrix* matrix : round) {
      if (matrix->owner != owner || !in_row(owner, *place_)) continue;
      const Segment& segment = *matrix->segment;
      const Range part = part_of(*matrix, place_->index);
      packer.add(segment.own_view(segment.master(), matrix->param, part));
      if (has_gradients_) packer.add(segment.own_view(segment.reduced(), matrix->param, part));
    }
  exchange.work = matrices_.front().segment->channels().update->start_all_to_all(
      exchange.output, exchange.input, sizes.received, sizes.sent);
  return exchange;
}

/// Returns the owned matrices: views of the masters, if these are whole, else assembled copies.
std::vector<UpdateTensor> MatrixUpdate::tensors_of(const Round& round, Exchange& inputs) const {
  std::vector<UpdateTensor> tensors;
  for (const Matrix* matrix : round) {
    if (!is_owned(*matrix)) continue;
    const Segment& segment = *matrix->segment;
    const auto options = segment.master().options();
    UpdateTensor tensor{matrix->range, {}, {}};
    if (place_->shard_ranks == 1) {
      tensor.value = segment.own_view(segment.master(), matrix->param, matrix->range);
      tensor.grad = segment.own_view(segment.reduced(), matrix->param, matrix->range);
      if (has_gradients_) tensor.grad = tensor.grad.to(options.device());
    } else {
      tensor.value = at::empty({matrix->size()}, options);
      if (has_gradients_) tensor.grad = at::empty({matrix->size()}, options);
    }
    tensors.push_back(std::move(tensor));
  }
  if (inputs.work) {
    inputs.work->wait();
    Packer packer(inputs.output);
    const int64_t first = place_->row() * place_->shard_ranks;
    for (int64_t replica = first; replica < first + place_->shard_ranks; ++replica) {
      size_t index = 0;
      for (const Matrix* matrix : round) {
        if (!is_owned(*matrix)) continue;
        UpdateTensor& tensor = tensors[index++];
        const Range part = part_of(*matrix, replica);
        slice(tensor.value, *matrix, part).copy_(packer.take(size_of(part)));
        if (has_gradients_) slice(tensor.grad, *matrix, part).copy_(packer.take(size_of(part)));
      }
    }
    inputs = {};
  }
  for (UpdateTensor& tensor : tensors) {
    const int64_t cols = tensor.range.box_shape.empty() ? 1 : tensor.range.box_shape.back();
    tensor.value = tensor.value.view({-1, cols});
    if (tensor.grad.defined()) tensor.grad = tensor.grad.view({-1, cols});
  }
  return tensors;
}

MatrixUpdate::Sizes MatrixUpdate::sizes_of_results(const Round& round) const {
  const std::vector<int64_t> none(size_t(place_->size()), 0);
  Sizes sizes{none, none};
  if (place_->size() == 1) return sizes;
  const bool is_whole = place_->shard_ranks == 1;  // the owner's copy is in place already
  for (const Matrix* matrix : round) {
    if (!is_owned(*matrix) || !is_whole)
      sizes.received[size_t(matrix->owner)] += size_of(part_of(*matrix, place_->index));
    for (int64_t replica = 0; replica < place_->size(); ++replica)
      if (is_owned(*matrix) && !(is_whole && replica == place_->index))
        sizes.sent[size_t(replica)] += size_of(part_of(*matrix, replica));
  }
  return sizes;
}

/// Sends the new values of the owned matrices to all replicas.
MatrixUpdate::Exchange MatrixUpdate::start_results(const Round& round,
                                                   std::span<const UpdateTensor> updated) const {
  if (place_->size() == 1) return {};
  const bool is_whole = place_->shard_ranks == 1;
  const Sizes sizes = sizes_of_results(round);
  Exchange exchange = allocate(sizes, device_);
  Packer packer(exchange.input);
  for (int64_t replica = 0; replica < place_->size(); ++replica) {
    size_t index = 0;
    for (const Matrix* matrix : round) {
      if (!is_owned(*matrix)) continue;
      const UpdateTensor& tensor = updated[index++];
      if (is_whole && replica == place_->index) continue;
      packer.add(slice(tensor.value, *matrix, part_of(*matrix, replica)));
    }
  }
  exchange.work = matrices_.front().segment->channels().update->start_all_to_all(
      exchange.output, exchange.input, sizes.received, sizes.sent);
  return exchange;
}

void MatrixUpdate::finish_results(const Round& round, Exchange& results) const {
  if (!results.work) return;
  results.work->wait();
  Packer packer(results.output);
  for (int64_t owner = 0; owner < place_->size(); ++owner)
    for (const Matrix* matrix : round) {
      if (matrix->owner != owner || (is_owned(*matrix) && place_->shard_ranks == 1)) continue;
      const Range part = part_of(*matrix, place_->index);
      matrix->segment->own_view(matrix->segment->master(), matrix->param, part)
          .copy_(packer.take(size_of(part)));
    }
  results = {};
}

int64_t MatrixUpdate::assembled_bytes(const Round& round) const {
  int64_t bytes = 0;
  for (const Matrix* matrix : round)
    if (is_owned(*matrix) && place_->shard_ranks > 1) bytes += 8 * matrix->size();
  return bytes;
}

MatrixCost MatrixUpdate::cost() const {
  MatrixCost cost;
  const auto own = [this](const Sizes& sizes) { return sizes.sent[size_t(place_->index)]; };
  int64_t previous_results = 0;
  for (size_t i = 0; i < rounds_.size(); ++i) {
    const Sizes inputs = sizes_of_inputs(rounds_[i], 2), results = sizes_of_results(rounds_[i]);
    cost.sent += 4 * (sum(inputs.sent) - own(inputs) + sum(results.sent) - own(results));
    const int64_t next_inputs =
        i + 1 < rounds_.size() ? sizes_of_inputs(rounds_[i + 1], 2).bytes() : 0;
    const int64_t buffers =
        std::max({previous_results + inputs.bytes(), previous_results + next_inputs,
                  next_inputs + results.bytes()});
    cost.peak = std::max(cost.peak, assembled_bytes(rounds_[i]) + buffers);
    previous_results = results.bytes();
  }
  return cost;
}

void MatrixUpdate::run(const UpdateFunction& fn) {
  Exchange inputs, results;
  if (!rounds_.empty()) inputs = start_inputs(rounds_.front());
  for (size_t i = 0; i < rounds_.size(); ++i) {
    std::vector<UpdateTensor> tensors = tensors_of(rounds_[i], inputs);
    if (i + 1 < rounds_.size()) inputs = start_inputs(rounds_[i + 1]);
    if (!tensors.empty()) fn(tensors);
    if (i > 0) finish_results(rounds_[i - 1], results);
    results = start_results(rounds_[i], tensors);
  }
  if (!rounds_.empty()) finish_results(rounds_.back(), results);
}

}  // namespace dsv3::data_parallel
