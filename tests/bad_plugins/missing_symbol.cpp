// Calls an undefined function; a linker option permits that.
#include <dsv3/sdk/plugin.h>

void defined_nowhere();

DSV3_PLUGIN(registrar) {
  static_cast<void>(registrar);
  defined_nowhere();
}
