#include "dispatch.h"

#include <ATen/ATen.h>

namespace moe {
namespace {

std::vector<int64_t> numbers_of(const at::Tensor& tensor) {
  const at::Tensor host = tensor.cpu().contiguous();
  return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
}

}  // namespace

Dispatch dispatch_of(const at::Tensor& counts, dsv3::Communicator& group) {
  const int64_t own = counts.numel() / group.size();
  const at::Tensor by_expert = counts.contiguous();
  at::Tensor received = at::empty_like(by_expert);  // [size(), own]
  group.start_all_to_all(received, by_expert)->wait();
  Dispatch dispatch;
  dispatch.sent = numbers_of(by_expert.view({group.size(), own}).sum(1));
  dispatch.received = numbers_of(received.view({group.size(), own}).sum(1));
  dispatch.experts = at::arange(own, counts.options())
                         .repeat({group.size()})
                         .repeat_interleave(received)
                         .unsqueeze(1);
  return dispatch;
}

}  // namespace moe
