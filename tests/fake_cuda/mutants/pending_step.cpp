// The values of a step are copied to the host in the wrong order. Variants:
//   no_wait      the host reads them without a wait
//   event_first  the host waits for an event recorded before the copy
//   at_once      the host waits for the step that it has just queued, so that the device idles
#include <c10/core/impl/VirtualGuardImpl.h>

#include "mutant.h"
#include "train/step.h"

namespace dsv3 {

DSV3_MUTANT PendingStep::PendingStep(int64_t number, const at::Tensor& device_values,
                                     std::vector<std::string> metric_names,
                                     std::vector<Batch> step_batches, LossScale loss_scale)
    : step(number),
      names(std::move(metric_names)),
      batches(std::move(step_batches)),
      scale(std::move(loss_scale)),
      values_(at::empty(device_values.sizes(),
                        at::TensorOptions().dtype(at::kDouble).pinned_memory(true))),
      copied_(device_values.device().type()) {
  const c10::impl::VirtualGuardImpl guard(device_values.device().type());
  const bool event_first = mutant::variant() == "event_first";
  if (event_first) copied_.record(guard.getStream(device_values.device()));
  values_.copy_(device_values, /*non_blocking=*/true);
  if (!event_first) copied_.record(guard.getStream(device_values.device()));
  if (mutant::variant() == "at_once") copied_.synchronize();
}

DSV3_MUTANT std::vector<double> PendingStep::read() const {
  if (mutant::variant() != "no_wait") copied_.synchronize();
  const double* values = values_.const_data_ptr<double>();
  return {values, values + values_.numel()};
}

}  // namespace dsv3
