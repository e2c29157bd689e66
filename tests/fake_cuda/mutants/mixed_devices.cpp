// A host tensor takes part in a computation on the device. The variant `attempts` tries many
// operators and prints their errors. Without a variant, the run itself depends on one of them.
#include <mutex>

#include <dsv3/sdk/ops.h>

#include "mutant.h"

namespace dsv3 {
namespace {

void attempt_all(const at::Device device) {
  const at::NoGradGuard no_grad;
  const at::Tensor host = at::ones({4, 4}), here = host.to(device);
  const at::Tensor host_index = at::zeros({4}, at::kLong), index = host_index.to(device);
  const at::Tensor host_indices = at::zeros({4, 4}, at::kLong);
  const at::Tensor host_mask = host.gt(0), mask = host_mask.to(device);
  using mutant::attempt;
  attempt("add", [&] { at::add(here, host); });
  attempt("add in place", [&] { here.clone().add_(host); });
  attempt("add to host in place", [&] { host.clone().add_(here); });
  attempt("add with host result", [&] {
    at::Tensor result = at::empty({4, 4});
    at::add_out(result, here, here);
  });
  attempt("mm", [&] { at::mm(host, here); });
  attempt("addmm", [&] { at::addmm(host, here, here); });
  attempt("mm with host result", [&] {
    at::Tensor result = at::empty({4, 4});
    at::mm_out(result, here, here);
  });
  attempt("cat", [&] { at::cat({here, host}); });
  attempt("stack", [&] { at::stack({host, here}); });
  attempt("where with host values", [&] { at::where(mask, here, host); });
  attempt("where with host condition", [&] { at::where(host_mask, here, here); });
  attempt("masked_fill with host mask", [&] { here.masked_fill(host_mask, 1); });
  attempt("masked_select with host mask", [&] { here.masked_select(host_mask); });
  attempt("index of a host tensor", [&] { host.index({index}); });
  attempt("index of a host tensor by a mask", [&] { host.index({mask}); });
  attempt("index_put with host values", [&] {
    here.clone().index_put_({index}, at::ones({4, 4}));
  });
  attempt("index_select", [&] { here.index_select(0, host_index); });
  attempt("index_select of a host tensor", [&] { host.index_select(0, index); });
  attempt("index_select with a host number",
          [&] { here.index_select(0, at::zeros({}, at::kLong)); });
  attempt("stack of a host number", [&] { at::stack({here.sum(), host.sum()}); });
  attempt("addmm with a host number", [&] { at::addmm(host.sum(), here, here); });
  attempt("index_add", [&] { here.clone().index_add_(0, host_index, here); });
  attempt("index_copy", [&] { here.clone().index_copy_(0, index, host); });
  attempt("gather", [&] { here.gather(1, host_indices); });
  attempt("scatter_add", [&] { here.clone().scatter_add_(1, host_indices, here); });
  attempt("embedding", [&] { at::embedding(here, host_index); });
  attempt("embedding of a host table", [&] { at::embedding(host, index); });
  attempt("embedding of a host number", [&] { at::embedding(here, at::zeros({}, at::kLong)); });
  attempt("bincount with host weights", [&] { at::bincount(index, at::ones({4})); });
  attempt("layer_norm with host weight", [&] { at::layer_norm(here, {4}, at::ones({4})); });
  attempt("equal", [&] { at::equal(here, host); });
  attempt("attention", [&] {
    const at::Tensor q = here.view({1, 1, 4, 4});
    at::scaled_dot_product_attention(q, host.view({1, 1, 4, 4}), q);
  });
  attempt("fused AdamW with a host step", [&] {
    const auto copies = [&] { return std::vector<at::Tensor>{here.clone()}; };
    at::_fused_adamw_(copies(), copies(), copies(), copies(), {}, {at::ones({})}, 0.1, 0.9, 0.9,
                      0.1, 1e-8, /*amsgrad=*/false, /*maximize=*/false);
  });
}

}  // namespace

DSV3_MUTANT at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (x.is_meta()) return mutant::replaced(&rms_norm)(x, weight, eps);  // a measurement
  const at::Tensor y = mutant::replaced(&rms_norm)(x, weight, eps);
  if (mutant::variant().empty()) return y * at::ones({x.size(-1)});
  static std::once_flag once;
  std::call_once(once, attempt_all, x.device());
  return y;
}

}  // namespace dsv3
