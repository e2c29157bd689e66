// Has a stamp but no DSV3_PLUGIN.
#include <dsv3/sdk/plugin.h>
