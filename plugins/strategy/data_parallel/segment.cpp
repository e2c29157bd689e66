#include "segment.h"

#include <limits>

#include <ATen/ATen.h>

namespace dsv3::data_parallel {
namespace {

constexpr int64_t kAlignment = 32;  // in elements, as in FlatLayout

/// Frees or allocates the memory of a tensor and of all its views.
void resize(const at::Tensor& buffer, int64_t elements) {
  c10::StorageImpl* storage = buffer.storage().unsafeGetStorageImpl();
  const size_t bytes = size_t(elements) * buffer.element_size();
  storage->set_data_ptr_noswap(bytes ? storage->allocator()->allocate(bytes)
                                     : at::DataPtr(nullptr, buffer.device()));
  storage->set_nbytes(bytes);
}

bool is_freed(const at::Tensor& buffer) {
  return buffer.storage().nbytes() == 0 && buffer.numel() > 0;
}

}  // namespace

Segment::Segment(std::vector<UnitParam> params, int64_t unit, const Place& place,
                 const Settings& settings, at::ScalarType compute_dtype)
    : params_(std::move(params)),
      unit_(unit),
      place_(&place),
      settings_(&settings),
      dtype_(compute_dtype),
      layout_(params_) {
  const at::Tensor meta = at::empty({layout_.size()}, at::TensorOptions().device(at::kMeta));
  for (size_t i = 0; i < params_.size(); ++i)
    offsets_.push_back(layout_.view(meta, i).storage_offset());
  // Parts are multiples of the number of rows, so that rows can sum equal pieces of them.
  const int64_t unit_size = place.shard_ranks == 1 && place.rows() == 1
                                ? 1
                                : place.shard_ranks * place.rows() * kAlignment;
  part_ = (layout_.size() + unit_size - 1) / unit_size * unit_size / place.shard_ranks;
}

bool Segment::values_contain_masters() const {
  return dtype_ == at::kFloat && !frees_values() && !settings_->offload_optimizer;
}

void Segment::adopt(at::Device device) {
  const auto fp32 = at::TensorOptions().dtype(at::kFloat).device(device);
  const at::Tensor all = at::zeros({part_ * place_->shard_ranks}, fp32);
  for (size_t i = 0; i < params_.size(); ++i)
    layout_.view(all, i).copy_(params_[i].tensor.detach());
  const at::Tensor own = own_part(all);
  const bool shared = values_contain_masters();
  if (settings_->offload_optimizer)
    master_ = own.to(fp32.device(at::kCPU).pinned_memory(device.is_cuda()), false, true);
  else
    master_ = shared || !sharded() ? own : own.clone();
  // Gathers of offloaded masters would move fp32 values over the bus.
  if (frees_values() && settings_->offload_optimizer && !settings_->offload_parameters)
    copy_ = own.to(dtype_, false, true);
  if (shared)
    values_ = all;
  else
    values_ = dtype_ == at::kFloat && sharded() ? all : all.to(dtype_, false, true);
  point_params();
  if (frees_values()) release_values();
}

/// Makes the components' tensors views of the values. Without sharding, a parameter whose dtype is
/// fp32 in any case is a view of the masters.
void Segment::point_params() {
  for (size_t i = 0; i < params_.size(); ++i) {
    UnitParam& param = params_[i];
    const bool full = param.keep_fp32 && values_.scalar_type() != at::kFloat;
    param.tensor.set_data(layout_.view(full ? master_ : values_, i));
    param.tensor.set_requires_grad(true);
  }
}

at::Tensor Segment::own_part(const at::Tensor& buffer) const {
  return buffer.narrow(0, part_ * place_->shard(), part_);
}

void Segment::fill_own_part() {
  const at::Tensor own = own_part(values_);
  if (!values_contain_masters()) own.copy_(copy_.defined() ? copy_ : master_);
}

void Segment::start_values() {
  if (present_) return;
  if (is_freed(values_)) resize(values_, values_.numel());
  fill_own_part();
  gather_ = channels_->gather->start_all_gather(values_, own_part(values_));
  present_ = true;
}

void Segment::wait_values() {
  start_values();
  if (!gather_) return;
  gather_->wait();
  gather_.reset();
}

void Segment::release_values() {
  if (!frees_values() || !present_) return;
  if (gather_) wait_values();
  if (settings_->fill_freed)
    values_.fill_(std::numeric_limits<double>::quiet_NaN());
  else
    resize(values_, 0);
  present_ = false;
}

void Segment::refresh() {
  if (copy_.defined()) copy_.copy_(master_);
  if (frees_values()) return release_values();
  if (!sharded()) return fill_own_part();
  if (gather_) wait_values();
  present_ = false;
  start_values();
}

void Segment::allocate_gradients() {
  if (gradients_.defined()) return;
  const auto fp32 = at::TensorOptions().dtype(at::kFloat).device(values_.device());
  const int64_t size = part_ * place_->shard_ranks;
  gradients_ = frees_gradients() ? at::empty({size}, fp32) : at::zeros({size}, fp32);
  reduced_ = frees_gradients() ? at::zeros({part_}, fp32) : own_part(gradients_);
  // Autograd adds to an existing gradient in place and in that gradient's dtype, so gradients are
  // fp32 even for bf16 parameters.
  for (size_t i = 0; i < params_.size(); ++i)
    params_[i].tensor.mutable_grad() = layout_.view(gradients_, i);
  release_gradients();
}

void Segment::begin_gradients() {
  if (!frees_gradients() || !is_freed(gradients_)) return;
  resize(gradients_, gradients_.numel());
  gradients_.zero_();
}

void Segment::release_gradients() {
  if (frees_gradients()) resize(gradients_, 0);
}

void Segment::clear_gradients() {
  if (!gradients_.defined()) return;
  if (frees_gradients())
    reduced_.zero_();
  else
    gradients_.zero_();
}

at::Tensor Segment::counted() const {
  if (!reduced_.defined()) return {};
  const int64_t count = part_ / place_->rows();
  return reduced_.narrow(0, count * place_->row(), count);
}

Range Segment::own_range(size_t param) const {
  Range range = whole_range(params_[param]);
  const int64_t first = part_ * place_->shard() - offsets_[param];
  range.begin = std::clamp<int64_t>(first, 0, range.end);
  range.end = std::clamp<int64_t>(first + part_, range.begin, range.end);
  // Distributes the ranges that several rows hold evenly.
  range.primary = (unit_ + int64_t(param)) % place_->rows() == place_->row();
  return range;
}

at::Tensor Segment::own_view(const at::Tensor& buffer, size_t param, const Range& range) const {
  if (!buffer.defined()) return {};
  if (range.begin == range.end) return buffer.narrow(0, 0, 0);
  return buffer.narrow(0, offsets_[param] + range.begin - part_ * place_->shard(),
                       range.end - range.begin);
}

SegmentBytes Segment::bytes() const {
  const int64_t all = part_ * place_->shard_ranks, width = int64_t(c10::elementSize(dtype_));
  SegmentBytes bytes;
  bytes.values = all * width;
  bytes.gradients = all * 4;
  if (!values_contain_masters() && !settings_->offload_optimizer) bytes.master = part_ * 4;
  if (frees_values() && settings_->offload_optimizer && !settings_->offload_parameters)
    bytes.copy = part_ * width;
  if (frees_gradients()) bytes.reduced = part_ * 4;
  return bytes;
}

}  // namespace dsv3::data_parallel
