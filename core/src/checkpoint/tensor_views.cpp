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

std::string range_key(const Range& range) {
  const int64_t whole = c10::multiply_integers(range.box_shape);
  const bool piece = range.begin != 0 || range.end != whole;
  return piece ? range.name + "/" + std::to_string(range.begin) : range.name;
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

void copy_view(const std::map<std::string, safetensors::View>& views, const std::string& key,
               const at::Tensor& tensor) {
  const auto found = views.find(key);
  if (found == views.end())
    throw Error("the checkpoint has no tensor '" + key +
                    "'; it was saved with a different model, optimizer or strategy",
                ExitCode::checkpoint);
  const safetensors::View& view = found->second;
  const std::string dtype = dtype_name(tensor.scalar_type());
  if (view.dtype != dtype || at::IntArrayRef(view.shape) != tensor.sizes() ||
      view.size != tensor.nbytes())
    throw Error(c10::str("tensor '", key, "' is ", view.dtype, " ", at::IntArrayRef(view.shape),
                         " in the checkpoint, but this run needs ", dtype, " ", tensor.sizes()),
                ExitCode::checkpoint);
  const bool direct = tensor.is_cpu() && tensor.is_contiguous();
  const at::Tensor host =
      direct ? tensor : at::empty(tensor.sizes(), tensor.options().device(at::kCPU));
  if (view.size > 0) std::memcpy(host.mutable_data_ptr(), view.bytes, view.size);
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
