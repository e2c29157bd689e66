#include "checkpoint/tensor_views.h"

#include <cmath>
#include <cstring>

#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

constexpr std::pair<at::ScalarType, const char*> kDtypes[] = {
    {at::kFloat, "F32"}, {at::kBFloat16, "BF16"}, {at::kHalf, "F16"}, {at::kDouble, "F64"},
    {at::kLong, "I64"},  {at::kInt, "I32"},       {at::kByte, "U8"},  {at::kBool, "BOOL"}};

}  // namespace

std::string dtype_name(at::ScalarType dtype) {
  for (const auto& [type, name] : kDtypes)
    if (type == dtype) return name;
  throw Error(c10::str("checkpoints cannot store tensors of dtype ", dtype), ExitCode::checkpoint);
}

std::optional<at::ScalarType> dtype_from_name(const std::string& name) {
  for (const auto& [type, type_name] : kDtypes)
    if (type_name == name) return type;
  return std::nullopt;
}

int64_t first_element(const Range& range) {
  const at::IntArrayRef whole = range.global_shape, box = range.box_shape;
  if (box.empty() || box == whole) return range.begin;
  if (box.size() != whole.size() || range.box_offset.size() != whole.size() ||
      box.slice(1) != whole.slice(1))
    throw Error(c10::str("'", range.name, "' of shape ", whole, " is sliced as ", box,
                         "; checkpoints store slices along the first dimension only"));
  return range.box_offset[0] * c10::multiply_integers(whole.slice(1)) + range.begin;
}

void require_size(const Range& range, const at::Tensor& values) {
  if (values.numel() != range.end - range.begin)
    throw Error(c10::str("a piece of '", range.name, "' has ", values.numel(),
                         " elements, but its range is ", range.begin, " to ", range.end));
}

Range flattened(const Range& range) {
  Range flat = range;
  flat.global_shape = {c10::multiply_integers(range.global_shape)};
  flat.box_offset = {first_element(range) - range.begin};
  flat.box_shape = {c10::multiply_integers(range.box_shape)};
  return flat;
}

std::string range_key(const Range& range) {
  const bool whole = range.end - range.begin == c10::multiply_integers(range.global_shape);
  return whole ? range.name : range.name + "/" + std::to_string(first_element(range));
}

void add_range(CheckpointContent& content, const std::string& prefix, const Range& range,
               const at::Tensor& values, bool one_value) {
  const int64_t begin = first_element(range), count = range.end - range.begin;
  const bool whole = range_key(range) == range.name;
  if (!range.primary || (count == 0 && !whole)) return;
  if (!one_value) require_size(range, values);
  const bool shaped = whole && !one_value;  // a strategy may own a whole tensor as a vector
  add_whole(content, prefix + range_key(range),
            shaped ? values.reshape(range.global_shape) : values);
  if (whole) return;
  PieceList& list = content.pieces[prefix + range.name];
  list.shape = range.global_shape;
  list.one_value = one_value;
  list.pieces.push_back({"", begin, begin + count});
}

void add_whole(CheckpointContent& content, const std::string& name, const at::Tensor& tensor) {
  const at::Tensor host = add_view(content.tensors, name, tensor);
  if (host.is_alias_of(tensor)) content.borrowed.insert(name);
  content.memory.push_back(std::make_shared<at::Tensor>(host));
}

at::Tensor add_view(std::map<std::string, safetensors::View>& views, const std::string& key,
                    const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().cpu().contiguous();
  const safetensors::View view{dtype_name(host.scalar_type()), host.sizes().vec(),
                               host.const_data_ptr(), host.nbytes()};
  if (!views.emplace(key, view).second)
    throw Error("the checkpoint has two tensors named '" + key + "'", ExitCode::checkpoint);
  return host;
}

void copy_borrowed(CheckpointContent& content) {
  for (const std::string& name : content.borrowed) {
    safetensors::View& view = content.tensors.at(name);
    const auto copy = std::make_shared_for_overwrite<char[]>(view.size);
    if (view.size > 0) std::memcpy(copy.get(), view.bytes, view.size);
    view.bytes = copy.get();
    content.memory.push_back(copy);
  }
  content.borrowed.clear();
}

void fill_from_host(const at::Tensor& tensor, const std::function<void(char*)>& fill) {
  const bool direct = tensor.is_cpu() && tensor.is_contiguous();
  const at::Tensor host =
      direct ? tensor : at::empty(tensor.sizes(), tensor.options().device(at::kCPU));
  if (host.nbytes() > 0) fill(static_cast<char*>(host.mutable_data_ptr()));
  if (!direct) tensor.copy_(host);
}

void require_finite(const std::map<std::string, safetensors::View>& views, const std::string& where,
                    ExitCode code) {
  for (const auto& [name, view] : views) {
    const auto dtype = dtype_from_name(view.dtype);
    if (!dtype || !at::isFloatingType(*dtype) || view.size == 0) continue;
    // from_blob() does not write to the memory.
    const at::Tensor values =
        at::from_blob(const_cast<void*>(view.bytes), view.shape, at::TensorOptions().dtype(*dtype));
    const auto [smallest, largest] = at::aminmax(values);  // NaN if any value is NaN
    if (std::isfinite(smallest.item<double>()) && std::isfinite(largest.item<double>())) continue;
    throw Error(where + ": tensor '" + name + "' has values that are not finite", code);
  }
}

}  // namespace dsv3
