#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {

KvCache::KvCache(int64_t batch, int64_t values, at::ScalarType dtype, at::Device device)
    : storage_(at::zeros({batch, 0, values}, at::TensorOptions().dtype(dtype).device(device))),
      lengths_(at::zeros({batch}, at::TensorOptions().dtype(at::kLong).device(device))) {}

at::Tensor KvCache::append(const at::Tensor& values) {
  const at::NoGradGuard no_grad;
  const int64_t batch = storage_.size(0), width = storage_.size(2), length = values.size(1);
  TORCH_CHECK(values.dim() == 3 && values.size(0) == batch && values.size(2) == width,
              "KvCache: values ", values.sizes(), " do not fit a cache of ", batch, " rows with ",
              width, " values a token");
  const int64_t needed = longest_ + length;
  if (needed > storage_.size(1)) {
    // Zeros, not garbage: a masked value still meets a weight of 0, and 0 * NaN would be NaN.
    const int64_t capacity = std::max({needed, 2 * storage_.size(1), int64_t{64}});
    at::Tensor grown = at::zeros({batch, capacity, width}, storage_.options());
    grown.narrow(1, 0, longest_).copy_(storage_.narrow(1, 0, longest_));
    storage_ = grown;
  }
  if (even_) {
    storage_.narrow(1, longest_, length).copy_(values);
  } else {
    const at::Tensor at_token =
        lengths_.unsqueeze(1) + at::arange(length, lengths_.options()).unsqueeze(0);  // [B, T]
    storage_.scatter_(1, at_token.unsqueeze(2).expand({batch, length, width}),
                      values.to(storage_.scalar_type()));
  }
  lengths_ = lengths_ + length;
  longest_ = needed;
  return storage_.narrow(1, 0, longest_);
}

void KvCache::truncate(const at::Tensor& lengths) {
  const at::Tensor host = lengths.to(at::kCPU, at::kLong);
  if (host.dim() != 1 || host.size(0) != lengths_.size(0) || host.lt(0).any().item<bool>() ||
      host.gt(lengths_.cpu()).any().item<bool>())
    throw Error(
        "KvCache::truncate: the new lengths must be one number a row, each between 0 and what "
        "the row holds");
  lengths_ = host.to(lengths_.device(), /*non_blocking=*/false, /*copy=*/true);
  longest_ = host.numel() ? host.max().item<int64_t>() : 0;
  even_ = host.numel() == 0 || host.eq(longest_).all().item<bool>();
}

int64_t KvCache::bytes() const {
  return static_cast<int64_t>(storage_.nbytes());
}

}  // namespace dsv3
