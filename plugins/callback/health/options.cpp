#include "options.h"

namespace health {

void Options::describe(dsv3::OptionSchema<Options>& s) {
  s.add("max_layers", &Options::max_layers,
        "number of layers with metrics of their own; later layers share the key 'rest'")
      .min(1);
  s.add("patience", &Options::patience,
        "number of logged steps in a row that must show a sign before its alarm is raised")
      .min(1);
  s.add("repeat_every", &Options::repeat_every,
        "number of steps after which an alarm is repeated if its sign is still present")
      .unit("steps")
      .min(1);
  s.add("update_ratio", &Options::update_ratio,
        "alarm if a layer's update RMS exceeds its weight RMS times this")
      .min(0);
  s.add("max_logit", &Options::max_logit, "alarm if the largest attention logit exceeds this")
      .min(0);
  s.add("block_ratio", &Options::block_ratio, "alarm if health/block_ratio of a layer exceeds this")
      .min(1);
  s.add("max_violation", &Options::max_violation,
        "alarm if moe/max_violation exceeds this while the routing bias does not change")
      .min(0);
  s.add("entropy", &Options::entropy, "alarm if moe/entropy falls below this").min(0).max(1);
}

}  // namespace health
