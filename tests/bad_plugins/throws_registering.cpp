// A plugin whose registration function throws an exception.
#include <dsv3/sdk/plugin.h>

DSV3_PLUGIN(registrar) {
  static_cast<void>(registrar);
  throw std::runtime_error("no licence found");
}
