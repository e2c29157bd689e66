// Attention within documents that are packed into the same rows, through a flash kernel that reads
// the boundaries of the documents instead of a mask.
#include <ATen/ATen.h>

#include <dsv3/sdk/packing.h>

#include "machine/machine.h"
#include "ops/attend.h"
#include "ops/kernels.h"

namespace dsv3 {
namespace {

// The kernel's arguments besides q, k, v [tokens, H, D].
struct Documents {
  at::Tensor boundaries;
  int64_t longest;
  double scale;
  std::optional<int64_t> window;

  // The number of tokens before a query that it attends to.
  std::optional<c10::SymInt> left() const {
    return window ? std::optional<c10::SymInt>(*window - 1) : std::nullopt;
  }
  std::optional<c10::SymInt> right() const {
    return window ? std::optional<c10::SymInt>(0) : std::nullopt;
  }
};

auto flash_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const Documents& documents) {
  return at::_flash_attention_forward_symint(
      q, k, v, documents.boundaries, documents.boundaries, documents.longest, documents.longest,
      /*dropout_p=*/0.0, /*is_causal=*/true, /*return_debug_mask=*/false, documents.scale,
      documents.left(), documents.right());
}

// A sink adds exp(sink) to the sum of each query's exponentiated scores. The kernel's result for a
// query thus shrinks by exp(lse - lse'), where lse is the logarithm of the sum without the sink and
// lse' with it. The backward kernel computes the weights as exp(score - lse), so that it returns
// the right gradients if it receives lse' and the smaller result. The gradient of a sink is that of
// a score whose value is zero.
struct FlashWithSinks : torch::autograd::Function<FlashWithSinks> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, const at::Tensor& sinks,
                            const Documents& documents) {
    const auto [out, lse, seed, offset, debug] = flash_forward(q, k, v, documents);
    const at::Tensor total = at::logaddexp(lse, sinks.unsqueeze(1));  // [H, tokens]
    const at::Tensor share = (lse - total).exp_().t().unsqueeze(2);
    const at::Tensor result = (out * share).to(out.scalar_type());
    ctx->save_for_backward({q, k, v, sinks, result, total, seed, offset, documents.boundaries});
    ctx->saved_data["longest"] = documents.longest;
    ctx->saved_data["scale"] = documents.scale;
    ctx->saved_data["window"] = documents.window;
    return result;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1], &v = saved[2], &sinks = saved[3],
                     &out = saved[4], &total = saved[5];
    const Documents documents{saved[8], ctx->saved_data["longest"].toInt(),
                              ctx->saved_data["scale"].toDouble(),
                              ctx->saved_data["window"].toOptional<int64_t>()};
    const at::Tensor dout = grads[0].contiguous();
    const auto [dq, dk, dv] = at::_flash_attention_backward_symint(
        dout, q, k, v, out, total, documents.boundaries, documents.boundaries, documents.longest,
        documents.longest, /*dropout_p=*/0.0, /*is_causal=*/true, saved[6], saved[7],
        documents.scale, documents.left(), documents.right());
    const at::Tensor mean = (dout.to(at::kFloat) * out).sum(2);  // [tokens, H]
    const at::Tensor dsinks = ((sinks.unsqueeze(1) - total).exp_().t() * mean).sum(0).neg();
    return {dq, dk, dv, dsinks, at::Tensor()};
  }
};

}  // namespace

bool has_kernel_for_documents(const at::Tensor& q, const at::Tensor& v) {
  constexpr int64_t kWidest = 256;
  const int64_t width = std::max(q.size(3), v.size(3));
  const bool half = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
  return is_ampere_or_newer(q.device()) && half && width <= kWidest && width % 8 == 0;
}

at::Tensor attend_documents(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const Packing* packing, const AttendOptions& options, double scale) {
  const int64_t width = std::max(q.size(3), v.size(3)), batch = q.size(0), length = q.size(1);
  // Pads to [B * T, H, width], because the kernel requires equal head dimensions in q, k and v.
  const auto rows = [&](const at::Tensor& x) {
    const at::Tensor flat = x.reshape({-1, x.size(2), x.size(3)});
    return x.size(3) == width ? flat : at::constant_pad_nd(flat, {0, width - x.size(3)});
  };
  Documents documents{{}, length, scale, options.window};
  if (packing) {
    documents.boundaries = packing->boundaries();
    documents.longest = packing->longest();
  } else {
    documents.boundaries = at::arange(0, batch * length + 1, length, q.options().dtype(at::kInt));
  }
  const at::Tensor out = options.sinks.defined()
                             ? FlashWithSinks::apply(rows(q), rows(k), rows(v),
                                                     options.sinks.to(at::kFloat), documents)
                             : std::get<0>(flash_forward(rows(q), rows(k), rows(v), documents));
  return out.narrow(2, 0, v.size(3)).view({batch, length, q.size(2), v.size(3)});
}

}  // namespace dsv3
