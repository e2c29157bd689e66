// Communicators for tensors on a device.
#pragma once

#include <dsv3/sdk/communicator.h>

namespace dsv3 {

/// Returns a communicator with the ranks of `host` for tensors on `device`. It copies them to host
/// memory and back, and waits for the device.
std::shared_ptr<Communicator> staged_communicator(std::shared_ptr<Communicator> host,
                                                  at::Device device);

}  // namespace dsv3
