// Calls a function that exists nowhere; the linker was told to let it pass.
#include <dsv3/sdk/plugin.h>

void defined_nowhere();

DSV3_PLUGIN(registrar) {
  static_cast<void>(registrar);
  defined_nowhere();
}
