// A plugin with a static initialiser that throws an exception during dlopen.
#include <dsv3/sdk/plugin.h>

namespace {
int fail() {
  throw std::runtime_error("thrown by a static initialiser");
}
const int value = fail();
}  // namespace

DSV3_PLUGIN(registrar) {
  static_cast<void>(registrar);
  static_cast<void>(value);
}
