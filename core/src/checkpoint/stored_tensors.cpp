#include <cmath>
#include <cstring>

#include <dsv3/runtime/stored_tensors.h>

#include "checkpoint/manifest.h"
#include "checkpoint/tensor_views.h"

namespace dsv3 {
namespace {

using Part = StoredTensor::Part;

/// The part that has an element.
auto find_part(const StoredTensor& stored, int64_t element) {
  return std::ranges::upper_bound(stored.parts, element, {}, &Part::begin) - 1;
}

/// Copies elements `begin` to `end` of a tensor to `bytes`.
void copy_elements(const StoredTensor& stored, int64_t begin, int64_t end, char* bytes) {
  if (begin == end) return;
  const auto size = int64_t(safetensors::element_size(stored.dtype));
  auto part = find_part(stored, begin);
  for (int64_t next = begin; next < end; ++part) {
    const int64_t count = std::min(end, part->end) - next;
    std::memcpy(bytes + (next - begin) * size, part->bytes + (next - part->begin) * size,
                size_t(count * size));
    next += count;
  }
}

/// A view that keeps `memory` alive.
at::Tensor view_of(const char* bytes, at::IntArrayRef shape, at::ScalarType dtype,
                   const std::shared_ptr<const void>& memory) {
  // from_blob() does not write to the memory.
  return at::from_blob(
      const_cast<char*>(bytes), shape, [memory](void*) {}, at::TensorOptions().dtype(dtype));
}

bool is_finite(const at::Tensor& values) {
  const auto [smallest, largest] = at::aminmax(values);  // NaN if any value is NaN
  return std::isfinite(smallest.item<double>()) && std::isfinite(largest.item<double>());
}

}  // namespace

StoredTensors::StoredTensors() = default;

StoredTensors::StoredTensors(const std::map<std::string, safetensors::View>& views,
                             std::shared_ptr<const void> memory)
    : memory_(std::move(memory)) {
  for (const auto& [name, view] : views) {
    const Part part{0, c10::multiply_integers(view.shape), static_cast<const char*>(view.bytes)};
    tensors_[name] =
        std::make_shared<StoredTensor>(StoredTensor{view.dtype, view.shape, false, {part}});
  }
}

StoredTensors::StoredTensors(const StoredCheckpoint& checkpoint) {
  auto files = std::make_shared<std::map<std::string, safetensors::File>>();
  for (const ManifestFile& file : files_of(checkpoint.manifest))
    if (is_tensor_file(file.name))
      files->emplace(file.name, safetensors::File(checkpoint.folder / file.name));
  try {
    for (auto& [name, tensor] : join_pieces(*files, pieces_of(checkpoint.manifest)))
      tensors_[name] = std::make_shared<StoredTensor>(std::move(tensor));
  } catch (const Error& error) {
    throw Error(checkpoint.folder.string() + "/" + error.what(), ExitCode::checkpoint);
  }
  memory_ = std::move(files);
}

std::vector<std::string> StoredTensors::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

bool StoredTensors::contains(const std::string& name) const {
  return tensors_.contains(name);
}

const std::vector<int64_t>& StoredTensors::shape(const std::string& name) const {
  return find(name).shape;
}

const StoredTensor& StoredTensors::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end())
    throw Error("the checkpoint has no tensor '" + name +
                    "'; it was saved with a different model or optimizer",
                ExitCode::checkpoint);
  return *found->second;
}

const StoredTensor& StoredTensors::find(const std::string& name, at::IntArrayRef shape,
                                        at::ScalarType dtype, bool one_value) const {
  const StoredTensor& stored = find(name);
  const std::string needed = dtype_name(dtype);
  const auto kind = [](bool one) { return one ? " with one value for each piece" : ""; };
  if (stored.dtype != needed || at::IntArrayRef(stored.shape) != shape ||
      stored.one_value != one_value)
    throw Error(
        c10::str("tensor '", name, "' is ", stored.dtype, " ", at::IntArrayRef(stored.shape),
                 kind(stored.one_value), " in the checkpoint, but this run needs ", needed, " ",
                 shape, kind(one_value)),
        ExitCode::checkpoint);
  return stored;
}

void StoredTensors::read(const std::string& name, const at::Tensor& tensor) const {
  const StoredTensor& stored = find(name, tensor.sizes(), tensor.scalar_type());
  fill_from_host(tensor, [&](char* host) { copy_elements(stored, 0, tensor.numel(), host); });
}

void StoredTensors::read(const std::string& name, const Range& range,
                         const at::Tensor& tensor) const {
  const StoredTensor& stored = find(name, range.global_shape, tensor.scalar_type());
  require_size(range, tensor);
  const int64_t begin = first_element(range), end = begin + range.end - range.begin;
  fill_from_host(tensor, [&](char* host) { copy_elements(stored, begin, end, host); });
}

void StoredTensors::read_value(const std::string& name, const Range& range,
                               const at::Tensor& tensor) const {
  if (!find(name).one_value) return read(name, tensor);
  const StoredTensor& stored =
      find(name, range.global_shape, tensor.scalar_type(), /*one_value=*/true);
  const char* value = find_part(stored, first_element(range))->bytes;
  fill_from_host(tensor, [&](char* host) { std::memcpy(host, value, tensor.nbytes()); });
}

at::Tensor StoredTensors::whole(const std::string& name) const {
  const StoredTensor& stored = find(name);
  const auto dtype = dtype_from_name(stored.dtype);
  if (!dtype)
    throw Error("tensor '" + name + "' is " + stored.dtype + ", which dsv3 cannot read",
                ExitCode::checkpoint);
  if (stored.parts.size() == 1 && !stored.one_value)
    return view_of(stored.parts[0].bytes, stored.shape, *dtype, memory_);
  const at::Tensor tensor = at::empty(stored.shape, *dtype);
  read(name, tensor);
  return tensor;
}

void StoredTensors::replace(const std::string& name, const std::string& source) {
  tensors_[name] = tensors_.at(source);
}

void StoredTensors::require_finite(const std::string& where, ExitCode code, int64_t rank,
                                   int64_t ranks) const {
  int64_t index = 0;
  for (const auto& [name, stored] : tensors_) {
    const auto dtype = dtype_from_name(stored->dtype);
    if (!dtype || !at::isFloatingType(*dtype)) continue;
    for (const Part& part : stored->parts) {
      const int64_t count = stored->one_value ? 1 : part.end - part.begin;
      if (index++ % ranks != rank || count == 0) continue;
      if (is_finite(view_of(part.bytes, {count}, *dtype, memory_))) continue;
      throw Error(where + ": tensor '" + name + "' has values that are not finite", code);
    }
  }
}

}  // namespace dsv3
