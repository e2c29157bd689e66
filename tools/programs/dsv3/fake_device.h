// The fake CUDA device of tests/fake_cuda, for commands that test components without a GPU.
#pragma once

/// Makes the fake CUDA device this process's only GPU. The device must be loaded before LibTorch,
/// so this restarts the program with the same arguments unless the device is already loaded. Call
/// it before the program prints or changes anything. Throws a dsv3::Error if the device is missing.
void use_fake_device();
