#include <dsv3/sdk/error.h>

namespace dsv3 {

Error::~Error() = default;

}  // namespace dsv3
