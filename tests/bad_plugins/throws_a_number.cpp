// A plugin whose registration function throws a value that is not a std::exception.
#include <dsv3/sdk/plugin.h>

DSV3_PLUGIN(registrar) {
  static_cast<void>(registrar);
  throw 42;
}
