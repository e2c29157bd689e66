// The library with NCCL's process groups, which links LibTorch's CUDA library.
#pragma once

#include <chrono>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace dsv3 {

struct NcclRequest {
  c10::intrusive_ptr<c10d::Store> store;  ///< of this group only
  int rank = 0, size = 1;
  std::chrono::milliseconds timeout{};  ///< of each operation
};

/// Makes a process group on the current GPU. The first operation connects the ranks.
using MakeNcclGroup = c10::intrusive_ptr<c10d::Backend>(const NcclRequest&);

/// The library's only function, a MakeNcclGroup.
constexpr const char* kMakeNcclGroup = "dsv3_make_nccl_group";

/// Loads the library at the first call. LibTorch's CUDA library must have been loaded (see
/// device_of()). Throws dsv3::Error (ExitCode::data) if the library cannot be loaded.
MakeNcclGroup& nccl_library();

}  // namespace dsv3
