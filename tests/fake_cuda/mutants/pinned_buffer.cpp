// All micro-batches pass through one pinned buffer. Variants:
//   operator   an operator refills the buffer, although its copy to the device may not be complete
//   memory     the same, by memcpy
//   old_event  the host waits first, but for an event recorded before the copy
//   waits      the correct code: the host waits for the copy
#include <cstring>

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "model/device_batch.h"
#include "mutant.h"

namespace dsv3 {

DSV3_MUTANT DeviceBatch to_device(const Batch& batch, int64_t losses, at::Device device) {
  DeviceBatch moved = mutant::replaced(&to_device)(batch, losses, device);
  if (!device.is_cuda()) return moved;
  static const at::Tensor buffer =
      at::empty(batch.tokens.sizes(), batch.tokens.options().pinned_memory(true));
  static c10::Event copied(device.type());
  static bool used = false;
  const std::string& variant = mutant::variant();
  const at::Tensor tokens = batch.tokens.contiguous();
  if (used && (variant == "waits" || variant == "old_event")) copied.synchronize();
  used = true;
  if (variant == "operator")
    buffer.copy_(tokens);
  else
    std::memcpy(buffer.mutable_data_ptr(), tokens.const_data_ptr(), tokens.nbytes());
  const c10::impl::VirtualGuardImpl guard(device.type());
  if (variant == "old_event") copied.record(guard.getStream(device));
  moved.tokens = buffer.to(device, /*non_blocking=*/true);
  if (variant == "waits") copied.record(guard.getStream(device));
  return moved;
}

}  // namespace dsv3
