#include "train/tensor_views.h"

#include <cstring>

#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

const char* safetensors_name(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "F32";
    case at::kBFloat16:
      return "BF16";
    case at::kHalf:
      return "F16";
    case at::kDouble:
      return "F64";
    case at::kLong:
      return "I64";
    case at::kInt:
      return "I32";
    case at::kByte:
      return "U8";
    case at::kBool:
      return "BOOL";
    default:
      throw Error(c10::str("tensors of dtype ", dtype, " cannot be kept in a checkpoint"),
                  ExitCode::checkpoint);
  }
}

}  // namespace

std::string range_key(const Range& range) {
  const int64_t whole = c10::multiply_integers(range.box_shape);
  const bool piece = range.begin != 0 || range.end != whole;
  return piece ? range.name + "/" + std::to_string(range.begin) : range.name;
}

at::Tensor add_view(std::map<std::string, safetensors::View>& views, const std::string& key,
                    const at::Tensor& tensor) {
  const at::Tensor host = tensor.detach().cpu().contiguous();
  const safetensors::View view{safetensors_name(host.scalar_type()), host.sizes().vec(),
                               host.const_data_ptr(), host.nbytes()};
  if (!views.emplace(key, view).second)
    throw Error("two tensors of the checkpoint are named '" + key + "'", ExitCode::checkpoint);
  return host;
}

void copy_view(const std::map<std::string, safetensors::View>& views, const std::string& key,
               const at::Tensor& tensor) {
  const auto found = views.find(key);
  if (found == views.end())
    throw Error("the checkpoint has no '" + key +
                    "'; it was made with another model, optimizer or strategy",
                ExitCode::checkpoint);
  const safetensors::View& view = found->second;
  const std::string dtype = safetensors_name(tensor.scalar_type());
  if (view.dtype != dtype || at::IntArrayRef(view.shape) != tensor.sizes() ||
      view.size != tensor.nbytes())
    throw Error("'" + key + "' is " + view.dtype + " " + c10::str(at::IntArrayRef(view.shape)) +
                    " in the checkpoint, but this run needs " + dtype + " " +
                    c10::str(tensor.sizes()),
                ExitCode::checkpoint);
  const bool direct = tensor.is_cpu() && tensor.is_contiguous();
  const at::Tensor host =
      direct ? tensor : at::empty(tensor.sizes(), tensor.options().device(at::kCPU));
  if (view.size > 0) std::memcpy(host.mutable_data_ptr(), view.bytes, view.size);
  if (!direct) tensor.copy_(host);
}

}  // namespace dsv3
