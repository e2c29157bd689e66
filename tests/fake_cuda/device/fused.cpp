// Host implementations of operators that exist only on CUDA, or that have more restrictions on CUDA
// than on the CPU.
#include <array>
#include <limits>
#include <tuple>
#include <vector>

#include <ATen/native/GroupedMMUtils.h>
#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/_log_softmax.h>
#include <ATen/ops/_softmax.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/rsqrt.h>
#include <torch/library.h>

#include "capability.h"
#include "memory.h"
#include "statistics.h"
#include "twins.h"

namespace fake_cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void check_on_device(const char* name, std::initializer_list<Tensor> tensors) {
  for (const Tensor& tensor : tensors)
    TORCH_CHECK(!tensor.defined() || tensor.is_cuda(),
                "Expected all tensors to be on the same device, but found at least two devices, "
                "cuda:0 and cpu! (",
                name, ")");
}

/// Copies a result on the host to the out= argument `out`.
void assign(const Tensor& out, const Tensor& host) {
  TORCH_CHECK(out.sizes() == host.sizes() && out.scalar_type() == host.scalar_type(),
              "fake_cuda: an out= argument has a different shape or dtype than the result");
  if (!dry()) twin(out).copy_(host);
}

// ---- normalisation

int64_t first_normalized(const Tensor& input, at::IntArrayRef normalized) {
  const int64_t first = input.dim() - int64_t(normalized.size());
  TORCH_CHECK(first >= 0 && input.sizes().slice(size_t(first)) == normalized,
              "rms_norm: the normalized shape ", normalized,
              " does not match the last dimensions of the input shape ", input.sizes());
  return first;
}

std::vector<int64_t> dims_from(int64_t first, int64_t end) {
  std::vector<int64_t> dims;
  for (int64_t d = first; d < end; ++d) dims.push_back(d);
  return dims;
}

std::tuple<Tensor, Tensor> rms_norm(const Tensor& input, at::IntArrayRef normalized,
                                    const OptionalTensor& weight, std::optional<double> eps) {
  const Tensor gamma = weight.value_or(Tensor());
  check_on_device("_fused_rms_norm", {input, gamma});
  TORCH_CHECK(!gamma.defined() || gamma.scalar_type() == input.scalar_type(),
              "expected scalar type ", input.scalar_type(), " but found ",
              gamma.defined() ? gamma.scalar_type() : at::kFloat);
  const std::vector<int64_t> dims = dims_from(first_normalized(input, normalized), input.dim());
  const Tensor x = twin(input).to(at::kFloat);
  const Tensor rstd =
      at::rsqrt(x.square().mean(dims, true) + eps.value_or(std::numeric_limits<float>::epsilon()));
  Tensor y = x * rstd;
  if (gamma.defined()) y = y * twin(gamma).to(at::kFloat);
  const Tensor out = to_device(y.to(input.scalar_type()).contiguous());
  const Tensor device_rstd = to_device(rstd);
  count_operator("aten::_fused_rms_norm", {input, gamma}, {out, device_rstd});
  return {out, device_rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& dout, const Tensor& input,
                                             at::IntArrayRef normalized, const Tensor& rstd,
                                             const OptionalTensor& weight,
                                             std::array<bool, 2> needed) {
  const Tensor gamma = weight.value_or(Tensor());
  check_on_device("_fused_rms_norm_backward", {dout, input, rstd, gamma});
  TORCH_CHECK(rstd.scalar_type() == at::kFloat, "expected scalar type Float but found ",
              rstd.scalar_type());
  const int64_t first = first_normalized(input, normalized);
  const std::vector<int64_t> inner = dims_from(first, input.dim()), outer = dims_from(0, first);
  const Tensor x = twin(input).to(at::kFloat) * twin(rstd);
  const Tensor dy = twin(dout).to(at::kFloat);
  const Tensor dx_hat = gamma.defined() ? dy * twin(gamma).to(at::kFloat) : dy;
  Tensor dinput, dgamma;
  if (needed[0]) {
    const Tensor dx = twin(rstd) * (dx_hat - x * (dx_hat * x).mean(inner, true));
    dinput = to_device(dx.to(input.scalar_type()).contiguous());
  }
  if (needed[1] && gamma.defined()) {
    const Tensor product = dy * x;
    dgamma = to_device((outer.empty() ? product : product.sum(outer)).to(gamma.scalar_type()));
  }
  count_operator("aten::_fused_rms_norm_backward", {dout, input, rstd, gamma}, {dinput, dgamma});
  return {dinput, dgamma};
}

// ---- matrix products with a wider result dtype

void check_wider(const char* name, const Tensor& a, const Tensor& b, at::ScalarType dtype) {
  check_on_device(name, {a, b});
  TORCH_CHECK(a.scalar_type() == b.scalar_type(), "input dtypes must be the same");
  const bool is_half = a.scalar_type() == at::kBFloat16 || a.scalar_type() == at::kHalf;
  TORCH_CHECK(dtype == a.scalar_type() || (dtype == at::kFloat && is_half),
              "out_dtype must be the same as input dtype or fp32 for fp16/bf16 inputs");
}

Tensor wide(const Tensor& tensor, at::ScalarType dtype) {
  return twin(tensor).to(dtype);
}

Tensor counted(const char* name, const std::vector<c10::IValue>& arguments, const Tensor& host) {
  const Tensor result = to_device(host);
  count_operator(name, arguments, {result});
  return result;
}

Tensor mm(const Tensor& a, const Tensor& b, at::ScalarType dtype) {
  check_wider("mm", a, b, dtype);
  return counted("aten::mm.dtype", {a, b}, at::mm(wide(a, dtype), wide(b, dtype)));
}

Tensor& mm_out(const Tensor& a, const Tensor& b, at::ScalarType dtype, Tensor& out) {
  check_wider("mm", a, b, dtype);
  check_on_device("mm", {out});
  assign(out, at::mm(wide(a, dtype), wide(b, dtype)));
  count_operator("aten::mm.dtype_out", {a, b}, {out});
  return out;
}

Tensor bmm(const Tensor& a, const Tensor& b, at::ScalarType dtype) {
  check_wider("bmm", a, b, dtype);
  return counted("aten::bmm.dtype", {a, b}, at::bmm(wide(a, dtype), wide(b, dtype)));
}

Tensor& bmm_out(const Tensor& a, const Tensor& b, at::ScalarType dtype, Tensor& out) {
  check_wider("bmm", a, b, dtype);
  check_on_device("bmm", {out});
  assign(out, at::bmm(wide(a, dtype), wide(b, dtype)));
  count_operator("aten::bmm.dtype_out", {a, b}, {out});
  return out;
}

Tensor addmm(const Tensor& self, const Tensor& a, const Tensor& b, at::ScalarType dtype,
             const at::Scalar& beta, const at::Scalar& alpha) {
  check_wider("addmm", a, b, dtype);
  check_on_device("addmm", {self});
  return counted("aten::addmm.dtype", {self, a, b},
                 at::addmm(wide(self, dtype), wide(a, dtype), wide(b, dtype), beta, alpha));
}

Tensor baddbmm(const Tensor& self, const Tensor& a, const Tensor& b, at::ScalarType dtype,
               const at::Scalar& beta, const at::Scalar& alpha) {
  check_wider("baddbmm", a, b, dtype);
  check_on_device("baddbmm", {self});
  return counted("aten::baddbmm.dtype", {self, a, b},
                 at::baddbmm(wide(self, dtype), wide(a, dtype), wide(b, dtype), beta, alpha));
}

// ---- grouped matrix products

/// Whether LibTorch uses its grouped kernel, which requires bf16 and a data-centre Hopper or
/// Blackwell GPU. Otherwise, LibTorch reads the groups' ends on the host and runs one matrix
/// product per group.
bool has_grouped_kernel(const Tensor& a) {
  const Capability gpu = capability();
  return a.scalar_type() == at::kBFloat16 && (gpu.major == 9 || gpu.major == 10) && gpu.minor == 0;
}

Tensor grouped_mm(const Tensor& a, const Tensor& b, const OptionalTensor& ends,
                  const OptionalTensor& bias, std::optional<at::ScalarType> dtype) {
  check_on_device("_grouped_mm", {a, b, ends.value_or(Tensor())});
  // Validate the device tensors, not their twins: LibTorch checks address alignment only on CUDA.
  at::native::_grouped_mm_validate_inputs(a, b, ends, bias, dtype);
  at::native::_resolve_grouped_mm_out_dtype(a, b, dtype);
  if (ends && !has_grouped_kernel(a)) count_wait("aten::_grouped_mm without a grouped kernel");
  const std::vector<c10::IValue> arguments{a, b, ends ? c10::IValue(*ends) : c10::IValue()};
  if (dry()) {
    const Tensor out = at::native::create_grouped_gemm_output_tensor(a, b, ends, a.scalar_type());
    count_operator("aten::_grouped_mm", arguments, {out});
    return out;
  }
  const OptionalTensor host_ends = ends ? OptionalTensor(twin(*ends)) : std::nullopt;
  return counted("aten::_grouped_mm", arguments,
                 at::_grouped_mm(twin(a), twin(b), host_ends, {}, dtype));
}

// ---- softmax

/// Returns the twin of `x`, converted to fp32 if `half_to_float`. CUDA supports this conversion for
/// fp16 but not for bf16.
Tensor converted(const Tensor& x, bool half_to_float) {
  if (!half_to_float) return twin(x);
  TORCH_CHECK(x.scalar_type() == at::kHalf, "conversion is supported for Half type only");
  return twin(x).to(at::kFloat);
}

Tensor softmax(const Tensor& x, int64_t dim, bool half_to_float) {
  return counted("aten::_softmax", {x}, at::_softmax(converted(x, half_to_float), dim, false));
}

Tensor& softmax_out(const Tensor& x, int64_t dim, bool half_to_float, Tensor& out) {
  check_on_device("_softmax", {x, out});
  assign(out, at::_softmax(converted(x, half_to_float), dim, false));
  count_operator("aten::_softmax.out", {x}, {out});
  return out;
}

Tensor log_softmax(const Tensor& x, int64_t dim, bool half_to_float) {
  return counted("aten::_log_softmax", {x},
                 at::_log_softmax(converted(x, half_to_float), dim, false));
}

Tensor& log_softmax_out(const Tensor& x, int64_t dim, bool half_to_float, Tensor& out) {
  check_on_device("_log_softmax", {x, out});
  assign(out, at::_log_softmax(converted(x, half_to_float), dim, false));
  count_operator("aten::_log_softmax.out", {x}, {out});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("_fused_rms_norm", &rms_norm);
  library.impl("_fused_rms_norm_backward", &rms_norm_backward);
  library.impl("mm.dtype", &mm);
  library.impl("mm.dtype_out", &mm_out);
  library.impl("bmm.dtype", &bmm);
  library.impl("bmm.dtype_out", &bmm_out);
  library.impl("addmm.dtype", &addmm);
  library.impl("baddbmm.dtype", &baddbmm);
  library.impl("_grouped_mm", &grouped_mm);
  library.impl("_softmax", &softmax);
  library.impl("_softmax.out", &softmax_out);
  library.impl("_log_softmax", &log_softmax);
  library.impl("_log_softmax.out", &log_softmax_out);
}

}  // namespace fake_cuda
