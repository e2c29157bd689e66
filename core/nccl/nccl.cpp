// Makes c10d's process groups for NCCL. A separate library, because it needs LibTorch's CUDA
// library, which not every machine has.
#define USE_C10D_NCCL
#include "ranks/nccl.h"

#include <cstdlib>
#include <string>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

namespace {

/// c10d's watchdog thread ends operations that time out or lose a peer. By default it then aborts
/// the process, so that the training thread could not report which rank failed.
void keep_process_alive() {
  const auto set = [](const char* name, const char* value) { ::setenv(name, value, 0); };
  set("TORCH_NCCL_ASYNC_ERROR_HANDLING", std::to_string(c10d::CleanUpOnly).c_str());
  set("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0");
  set("TORCH_NCCL_DUMP_ON_TIMEOUT", "0");
}

}  // namespace

// NOLINTNEXTLINE: both sides are C++, and C linkage only gives the function a plain name.
extern "C" __attribute__((visibility("default"))) c10::intrusive_ptr<c10d::Backend>
dsv3_make_nccl_group(const dsv3::NcclRequest& request) {
  keep_process_alive();
  const auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = request.timeout;
  return c10::make_intrusive<c10d::ProcessGroupNCCL>(request.store, request.rank, request.size,
                                                     options);
}
