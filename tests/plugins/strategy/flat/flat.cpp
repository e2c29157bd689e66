// The flat-buffer test strategy as a plugin, for tests that run whole programs.
#include <dsv3/sdk/plugin.h>

#include "conformance/flat_strategy.h"

DSV3_PLUGIN(registrar) {
  registrar.strategy<dsv3::conformance::FlatStrategy>(
      "flat", "Test strategy that frees parameters between uses");
}
