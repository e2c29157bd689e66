#include "model/device_batch.h"

#include <ATen/ATen.h>

#include <dsv3/sdk/packing.h>

namespace dsv3 {
namespace {

/// Copies int64 tensors from the host to a device in one transfer. The pinned buffer may be freed
/// before the copy is complete, because its allocator does not reuse it until then.
std::vector<at::Tensor> upload(const std::vector<at::Tensor>& hosts, at::Device device) {
  if (hosts.front().device() == device) return hosts;
  int64_t size = 0;
  for (const at::Tensor& host : hosts) size += host.numel();
  const at::Tensor pinned =
      at::empty({size}, at::TensorOptions().dtype(at::kLong).pinned_memory(device.is_cuda()));
  int64_t offset = 0;
  for (const at::Tensor& host : hosts) {
    pinned.narrow(0, offset, host.numel()).view(host.sizes()).copy_(host);
    offset += host.numel();
  }
  const at::Tensor all = pinned.to(device, /*non_blocking=*/true);
  std::vector<at::Tensor> copies;
  offset = 0;
  for (const at::Tensor& host : hosts) {
    copies.push_back(all.narrow(0, offset, host.numel()).view(host.sizes()));
    offset += host.numel();
  }
  return copies;
}

}  // namespace

DeviceBatch to_device(const Batch& batch, int64_t losses, at::Device device) {
  const int64_t rows = batch.tokens.size(0), length = batch.tokens.size(1) - 1;
  std::vector<at::Tensor> hosts{batch.tokens};
  for (int64_t depth = 0; depth < losses; ++depth)
    hosts.push_back(shifted_targets(batch.tokens, batch.document_ids, depth).reshape(-1));
  const bool has_documents = batch.document_ids.defined();
  int64_t longest = 0;
  if (has_documents) {
    const at::Tensor ids = batch.document_ids.narrow(1, 0, length);
    at::Tensor boundaries;
    std::tie(boundaries, longest) = document_boundaries(ids);
    hosts.insert(hosts.end(), {positions_of(ids), ids, boundaries});
  }

  std::vector<at::Tensor> copies = upload(hosts, device);
  DeviceBatch result;
  Sequence& seq = result.seq;
  if (has_documents) {
    const at::Tensor boundaries = copies.back();
    seq.document_ids = copies.end()[-2];
    seq.positions = copies.end()[-3];
    copies.resize(copies.size() - 3);
    if (boundaries.size(0) > rows + 1)
      seq.packing = std::make_shared<Packing>(seq.document_ids, boundaries.to(at::kInt), longest);
  } else {
    seq.positions = at::arange(length, at::TensorOptions().dtype(at::kLong).device(device))
                        .expand({rows, length});
  }
  result.tokens = copies.front();
  result.targets.assign(copies.begin() + 1, copies.end());
  return result;
}

}  // namespace dsv3
