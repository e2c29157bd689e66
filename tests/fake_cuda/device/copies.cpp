#include "copies.h"

#include <cstring>
#include <deque>
#include <mutex>
#include <vector>

#include <ATen/ExpandUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/item.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "memory.h"
#include "statistics.h"
#include "twins.h"

namespace fake_cuda {
namespace {

/// An asynchronous copy that the fake device may not have performed yet.
struct Pending {
  int64_t number;
  at::Tensor host;    // pinned tensor, kept alive until the copy is complete
  at::Tensor values;  // if to_host, the values to write to `host`; otherwise, the values in `host`
                      // when the copy was queued
  bool to_host;
};

struct Queue {
  std::mutex mutex;
  int64_t next = 0;
  std::deque<Pending> copies;
};

Queue& queue() {
  static Queue& instance = *new Queue;
  return instance;
}

void add(const at::Tensor& host, const at::Tensor& values, bool to_host) {
  Queue& all = queue();
  const std::lock_guard lock(all.mutex);
  all.copies.push_back({all.next++, host, values, to_host});
}

bool has_equal_bytes(const at::Tensor& a, const at::Tensor& b) {
  return std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

/// Whether CUDA performs a copy asynchronously: it must be non-blocking, use pinned memory, and
/// need only one memcpy. Copies that need several go through a temporary buffer in pageable memory.
bool is_asynchronous(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  const at::Tensor& host = to.is_cpu() ? to : from;
  return non_blocking && to.scalar_type() == from.scalar_type() && host.is_contiguous() &&
         (to.is_cuda() || from.is_contiguous()) && to.sizes() == from.sizes() &&
         is_pinned(host.const_data_ptr());
}

void copy_values(const at::Tensor& to, const at::Tensor& from) {
  const at::NoGradGuard no_grad;
  twin(to).copy_(twin(from));
}

void copy_to_device(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (is_asynchronous(to, from, non_blocking))
    add(from, at::empty_like(from).copy_(from), false);
  else
    count_wait(c10::str("copy to the device, ", from.nbytes(), " bytes of ",
                        is_pinned(from.const_data_ptr()) ? "pinned" : "pageable", " memory"));
  if (!dry()) copy_values(to, from);
}

void copy_to_host(const at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (is_asynchronous(to, from, non_blocking)) {
    const at::Tensor values = at::empty_like(to);
    if (dry())
      values.zero_();
    else
      copy_values(values, from);
    std::memset(to.mutable_data_ptr(), 0xff, to.nbytes());
    return add(to, values, true);
  }
  count_wait(c10::str("copy to the host, ", from.nbytes(), " bytes"));
  if (dry())
    to.zero_();
  else
    copy_values(to, from);
}

at::Tensor& copy(at::Tensor& to, const at::Tensor& from, bool non_blocking) {
  if (to.numel() == 0 || to.is_same(from)) return to;
  const at::AutoDispatchBelowADInplaceOrView below;
  TORCH_CHECK(at::is_expandable_to(from.sizes(), to.sizes()), "The size of tensor a ", to.sizes(),
              " must match the size of tensor b ", from.sizes());
  if (to.is_cuda() && from.is_cuda()) {
    if (!dry()) copy_values(to, from);
    count_operator("aten::copy_", {from}, {to});
  } else if (to.is_cuda()) {
    copy_to_device(to, from, non_blocking);
    count_operator("copy to the device", {from}, {to});
  } else {
    copy_to_host(to, from, non_blocking);
    count_operator("copy to the host", {from}, {to});
  }
  return to;
}

at::Scalar read_scalar(const at::Tensor& tensor) {
  count_wait("item");
  return dry() ? at::Scalar(1) : twin(tensor).item();
}

}  // namespace

int64_t next_copy() {
  Queue& all = queue();
  const std::lock_guard lock(all.mutex);
  return all.next;
}

void complete_copies(int64_t ticket) {
  Queue& all = queue();
  std::vector<Pending> done;
  {
    const std::lock_guard lock(all.mutex);
    while (!all.copies.empty() && all.copies.front().number < ticket) {
      done.push_back(std::move(all.copies.front()));
      all.copies.pop_front();
    }
  }
  for (const Pending& copy : done) {
    if (copy.to_host)
      std::memcpy(copy.host.mutable_data_ptr(), copy.values.const_data_ptr(), copy.host.nbytes());
    else
      TORCH_CHECK(has_equal_bytes(copy.host, copy.values),
                  "the host changed pinned memory before the device had copied it");
  }
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("copy_", &copy);
  library.impl("_local_scalar_dense", &read_scalar);
}

}  // namespace fake_cuda
