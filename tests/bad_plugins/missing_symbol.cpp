// Calls an undefined function, which a linker option permits.
#include <dsv3/sdk/plugin.h>

void defined_nowhere();

DSV3_PLUGIN(registrar) {
  static_cast<void>(registrar);
  defined_nowhere();
}
