#include <numeric>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <dsv3/sdk/exchange_rows.h>

namespace dsv3 {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What an exchange needs besides its tensor.
struct Exchange : torch::CustomClassHolder {
  std::vector<int64_t> send, receive;
  std::shared_ptr<Communicator> group;
};

at::Tensor sent(const at::Tensor& x, const std::vector<int64_t>& send,
                const std::vector<int64_t>& receive, Communicator& group) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes[0] = std::accumulate(receive.begin(), receive.end(), int64_t{0});
  at::Tensor received = at::empty(sizes, x.options());
  group.start_all_to_all(received, x.contiguous(), receive, send)->wait();
  return received;
}

struct ExchangeFunction : torch::autograd::Function<ExchangeFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const c10::intrusive_ptr<Exchange>& exchange) {
    context->saved_data["exchange"] = c10::IValue::make_capsule(exchange);
    return sent(x, exchange->send, exchange->receive, *exchange->group);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto capsule = context->saved_data["exchange"].toCapsule();
    const auto& exchange = static_cast<const Exchange&>(*capsule);
    return {sent(grads[0], exchange.receive, exchange.send, *exchange.group), at::Tensor()};
  }
};

}  // namespace

at::Tensor exchange_rows(const at::Tensor& x, std::vector<int64_t> send,
                         std::vector<int64_t> receive, std::shared_ptr<Communicator> group) {
  auto exchange = c10::make_intrusive<Exchange>();
  exchange->send = std::move(send);
  exchange->receive = std::move(receive);
  exchange->group = std::move(group);
  return ExchangeFunction::apply(x, exchange);
}

}  // namespace dsv3
