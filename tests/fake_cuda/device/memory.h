// Memory of the fake device: device memory, which host code cannot access, and pinned host memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include <c10/core/CachingDeviceAllocator.h>

namespace fake_cuda {

/// Whether FAKE_CUDA_DRY is set, so that operators compute only shapes and no data is stored.
bool dry();

/// Whether `pointer` points to device memory.
bool on_device(const void* pointer);

/// Returns the host address at which the fake device's kernels access the bytes of the device
/// address `pointer`. For a host address, returns one whose access faults (see `replaces_host`).
void* bytes_of(const void* pointer);

/// Whether a kernel that accesses `pointer` would access host memory on a GPU.
bool replaces_host(const void* pointer);

/// Returns the allocator for device memory, registered for `at::kCUDA`. New memory is filled with
/// 0xff, which is NaN in every floating-point type and -1 in every signed integer type. An
/// allocation that would exceed the device's memory (see `device_bytes`) throws
/// c10::OutOfMemoryError.
c10::DeviceAllocator& heap();

/// Returns the current GPU of the calling thread, from 0 to `device_count` - 1. All GPUs share one
/// heap.
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex index);

/// Returns the number of visible GPUs, as the fake driver reports it.
c10::DeviceIndex device_count();

/// Returns the size of the device's memory in bytes: FAKE_CUDA_MEMORY, by default an H100's.
size_t device_bytes();

/// Returns the allocator for pinned (page-locked) host memory, which the device can access
/// asynchronously.
c10::Allocator& pinned_heap();

/// Whether `pointer` points to memory from `pinned_heap`.
bool is_pinned(const void* pointer);

}  // namespace fake_cuda
