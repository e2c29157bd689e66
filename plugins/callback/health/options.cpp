#include "options.h"

namespace health {

void Options::describe(dsv3::OptionSchema<Options>& s) {
  s.add("max_layers", &Options::max_layers,
        "number of layers with their own metrics; the others share the key \"rest\"")
      .min(1)
      .max(10000);
  s.add("patience", &Options::patience,
        "number of logged steps in a row with a sign that raise an alarm; some alarms need a "
        "multiple of it")
      .min(1)
      .max(1 << 20);
  s.add("repeat_every", &Options::repeat_every,
        "number of steps after which an alarm is repeated while its sign lasts")
      .min(1)
      .max(1 << 30);
  s.add("update_ratio", &Options::update_ratio,
        "largest healthy update_rms / weight_rms of a layer")
      .min(0);
  s.add("max_logit", &Options::max_logit, "largest healthy attention/max_logit").min(0);
  s.add("block_ratio", &Options::block_ratio, "largest healthy block_ratio of a layer").min(1);
  s.add("max_violation", &Options::max_violation, "largest healthy moe/max_violation").min(0);
  s.add("entropy", &Options::entropy, "smallest healthy moe/entropy").min(0).max(1);
  s.add("loss_rise", &Options::loss_rise,
        "largest healthy difference between train/loss and its minimum so far")
      .unit("nats")
      .min(0);
  s.metric("health/grad_rms/<layer>", "",
           "root mean square of the gradients of the layer's matrices, after clipping");
  s.metric("health/update_rms/<layer>", "",
           "root mean square of the changes of the layer's matrices");
  s.metric("health/weight_rms/<layer>", "", "root mean square of the layer's matrices");
  s.metric("health/zero_gradients/<layer>", "parameters",
           "parameters of the layer whose gradient is 0, without stacked experts and embeddings");
  s.metric("health/block_ratio/<layer>", "",
           "largest factor by which the updates of all rows in one part of a matrix exceed those "
           "in the other part");
  s.metric("health/alarms", "alarms", "alarms that were active after the previous logged step");
}

}  // namespace health
