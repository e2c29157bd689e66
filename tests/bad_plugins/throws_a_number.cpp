// Throws a value that is not a std::exception in its registration function.
#include <dsv3/sdk/plugin.h>

DSV3_PLUGIN(registrar) {
  static_cast<void>(registrar);
  throw 42;
}
