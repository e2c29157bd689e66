// A plugin that calls an undefined function. A linker option permits the undefined symbol.
#include <dsv3/sdk/plugin.h>

void defined_nowhere();

DSV3_PLUGIN(registrar) {
  static_cast<void>(registrar);
  defined_nowhere();
}
