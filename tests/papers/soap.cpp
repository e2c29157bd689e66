// SOAP (Vyas et al., arXiv 2409.11321), algorithm 3, with the details of the authors' code: the
// first gradient only initialises the eigenbases, and bases are sorted by eigenvalue.
#include <cmath>

#include <ATen/ATen.h>

#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/plugin.h>

namespace {

struct Options {
  double lr = 3e-3, beta1 = 0.95, beta2 = 0.95, eps = 1e-8, weight_decay = 0.01;
  int64_t frequency = 10;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("lr", &Options::lr, "base learning rate, which the schedule scales").min(0);
    s.add("beta1", &Options::beta1, "decay rate of the first moment").min(0).max(1);
    s.add("beta2", &Options::beta2, "decay rate of the second moments").min(0).max(1);
    s.add("eps", &Options::eps, "constant added to the root of the second moment").min(0);
    s.add("weight_decay", &Options::weight_decay, "decoupled weight decay").min(0);
    s.add("frequency", &Options::frequency, "updates between two changes of the bases").min(1);
  }
};

/// Adam in the eigenbases P and Q of L = E[g g^T] and R = E[g^T g].
class Soap final : public dsv3::Optimizer {
 public:
  using Options = ::Options;
  explicit Soap(const Options& options) : o_(options) {}
  bool whole_matrices() const override { return true; }
  double lr() const override { return o_.lr; }
  std::vector<dsv3::StateSlot> slots() const override {
    using Like = dsv3::StateSlot::Like;
    const Like rows = Like::rows_by_rows, columns = Like::columns_by_columns;
    return {{"exp_avg"}, {"exp_avg_sq"}, {"l", rows}, {"r", columns}, {"p", rows}, {"q", columns}};
  }

  void step(std::span<const dsv3::Slice> slices, const dsv3::OptimStep& step) override {
    const double lr = o_.lr * step.lr_factor;
    const int64_t t = step.update - 1;
    for (const dsv3::Slice& slice : slices) {
      const std::span<at::Tensor> s = slice.state;
      const at::Tensor &g = slice.grad, &m = s[0], &v = s[1], &l = s[2], &r = s[3], &p = s[4],
                       &q = s[5];
      if (t > 0) {
        m.lerp_(g, 1 - o_.beta1);
        v.lerp_(p.t().mm(g).mm(q).square(), 1 - o_.beta2);
        const at::Tensor rotated = p.t().mm(m).mm(q) / (v.sqrt() + o_.eps);
        const double bias = std::sqrt(1 - std::pow(o_.beta2, t)) / (1 - std::pow(o_.beta1, t));
        slice.value.sub_(p.mm(rotated).mm(q.t()), lr * bias).mul_(1 - lr * o_.weight_decay);
      }
      l.lerp_(g.mm(g.t()), 1 - o_.beta2);
      r.lerp_(g.t().mm(g), 1 - o_.beta2);
      if (t == 0) {
        p.copy_(std::get<1>(at::linalg_eigh(l)).flip(1));
        q.copy_(std::get<1>(at::linalg_eigh(r)).flip(1));
      } else if (t % o_.frequency == 0) {
        v.copy_(v.index_select(0, rotate(p, l)).index_select(1, rotate(q, r)));
      }
    }
  }

 private:
  /// Improves the eigenbasis of `moment` by a power iteration. Returns its vectors' new order.
  static at::Tensor rotate(const at::Tensor& basis, const at::Tensor& moment) {
    const at::Tensor image = moment.mm(basis);
    const at::Tensor order = (basis * image).sum(0).argsort(/*dim=*/-1, /*descending=*/true);
    basis.copy_(std::get<0>(at::linalg_qr(image.index_select(1, order))));
    return order;
  }

  Options o_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.optimizer<Soap>("soap", "Adam in the eigenbasis of Shampoo's preconditioner (SOAP)");
}
