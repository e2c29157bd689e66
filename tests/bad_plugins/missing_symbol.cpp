// Calls an undefined function. A linker option lets the library link without it.
#include <dsv3/sdk/plugin.h>

void defined_nowhere();

DSV3_PLUGIN(registrar) {
  static_cast<void>(registrar);
  defined_nowhere();
}
