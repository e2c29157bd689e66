#include <atomic>

#include <dsv3/sdk/ops.h>

namespace dsv3 {
namespace {

std::atomic<bool> reference{false};

}  // namespace

void use_reference_ops(bool on) {
  reference = on;
}
bool reference_ops() {
  return reference;
}

}  // namespace dsv3
