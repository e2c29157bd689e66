// Options of the health callback: thresholds of its alarms.
#pragma once

#include <dsv3/sdk/options.h>

namespace health {

struct Options {
  int64_t max_layers = 64;
  int64_t patience = 3;
  int64_t repeat_every = 1000;
  double update_ratio = 0.25;
  double max_logit = 100;
  double block_ratio = 2;
  double max_violation = 1.5;
  double entropy = 0.5;
  double loss_rise = 0.5;

  static void describe(dsv3::OptionSchema<Options>& s);
};

}  // namespace health
