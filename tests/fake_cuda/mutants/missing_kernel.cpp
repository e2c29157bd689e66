// Operators that work on a CPU but not on a GPU. The variant `attempts` tries several and prints
// their errors. Without a variant, the run itself depends on one of them.
#include <mutex>

#include <dsv3/sdk/ops.h>

#include "mutant.h"

namespace dsv3 {
namespace {

void attempt_all(const at::Device device) {
  const at::NoGradGuard no_grad;
  const at::Tensor floats = at::ones({4, 4}, at::TensorOptions(device));
  const at::Tensor longs = floats.to(at::kLong), index = longs.flatten();
  using mutant::attempt;
  attempt("integer mm", [&] { at::mm(longs, longs); });
  attempt("integer bmm", [&] { at::bmm(longs.unsqueeze(0), longs.unsqueeze(0)); });
  attempt("integer matrix times vector", [&] { at::matmul(longs, longs.select(0, 0)); });
  attempt("integer dot", [&] { at::dot(index, index); });
  attempt("oneDNN", [&] { floats.to_mkldnn(); });
  // The run is deterministic.
  attempt("deterministic bincount", [&] { at::bincount(index, floats.flatten()); });
  attempt("deterministic histc", [&] { at::histc(floats, 4); });
  attempt("deterministic median", [&] { floats.median(0); });
  attempt("deterministic cumsum", [&] { floats.cumsum(0); });
  attempt("deterministic index_add",
          [&] { floats.clone().index_add_(0, index.narrow(0, 0, 4), floats); });
}

}  // namespace

DSV3_MUTANT at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (x.is_meta()) return mutant::replaced(&rms_norm)(x, weight, eps);  // a measurement
  if (mutant::variant().empty()) {
    at::histogram(x.detach().reshape({-1}), 4);
  } else {
    static std::once_flag once;
    std::call_once(once, attempt_all, x.device());
  }
  return mutant::replaced(&rms_norm)(x, weight, eps);
}

}  // namespace dsv3
