// The memory of the fake device: device memory that host code cannot access, and pinned host
// memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include <c10/core/CachingDeviceAllocator.h>

namespace fake_cuda {

/// Whether FAKE_CUDA_DRY is set: operators compute shapes only, and no bytes are stored.
bool dry();

/// Whether `pointer` is an address of device memory.
bool on_device(const void* pointer);

/// Where the kernels of the fake device find the bytes of an address of device memory.
void* bytes_of(const void* pointer);

/// The allocator of device memory, registered for `at::kCUDA`. New memory is filled with 0xff,
/// which is NaN in every floating-point type and -1 in every signed integer type. An allocation
/// that exceeds the size of the device (see `device_bytes`) throws c10::OutOfMemoryError.
c10::DeviceAllocator& heap();

/// The GPU of the calling thread: 0 <= index < `device_count`. All GPUs share one heap.
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex index);

/// The number of visible GPUs, as the fake driver reports it.
c10::DeviceIndex device_count();

/// The size of the device's memory: FAKE_CUDA_MEMORY in bytes, by default that of an H100.
size_t device_bytes();

/// The allocator of pinned memory: host memory that the device reads and writes while the host
/// continues.
c10::Allocator& pinned_heap();

/// Whether `pointer` is in memory of `pinned_heap`.
bool is_pinned(const void* pointer);

}  // namespace fake_cuda
