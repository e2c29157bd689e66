// What the program did with the fake device. FAKE_CUDA_LOG=FILE writes it to FILE at exit, as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/ivalue.h>

namespace fake_cuda {

/// Counts one call of the operator `name` (such as "aten::mm") with its bytes, FLOPs and time on an
/// H100: bytes are those of all arguments and results, each read or written once.
void count_operator(const std::string& name, const std::vector<c10::IValue>& arguments,
                    const std::vector<c10::IValue>& results);

/// Counts one wait of the host for the device, by reason and call site. With FAKE_CUDA_SYNC=error,
/// throws c10::Error instead. Completes the asynchronous copies that were queued before.
void count_wait(const std::string& reason);

/// Counts a wait for an event since which `queued` operators were called. Such a wait is short if
/// the event is old, so it is listed separately and not an error. Completes the copies up to
/// `ticket` (see copies.h).
void count_event_wait(int64_t queued, int64_t ticket);

/// Counts the kernel that an attention call runs, such as "flash".
void count_attention(const std::string& kernel);

/// The number of operators called so far.
int64_t operator_count();

extern "C" {
/// Starts a new section named `name` of the statistics. A plugin finds both functions with dlsym.
__attribute__((visibility("default"))) void fake_cuda_mark(const char* name);

/// Writes the statistics and ends the process with exit code 0.
__attribute__((visibility("default"))) void fake_cuda_finish();
}

/// Writes FAKE_CUDA_LOG.
void write_statistics();

}  // namespace fake_cuda
