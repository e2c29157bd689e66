// A library with a plugin stamp but without a DSV3_PLUGIN entry point.
#include <dsv3/sdk/plugin.h>
