// Statistics on the program's use of the fake device. If FAKE_CUDA_LOG=FILE is set, they are
// written to FILE as JSON when the program exits.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/ivalue.h>

namespace fake_cuda {

/// Counts one call of the operator `name` (such as "aten::mm") and its bytes, FLOPs and time on an
/// H100. The bytes include each argument and result once.
void count_operator(const std::string& name, const std::vector<c10::IValue>& arguments,
                    const std::vector<c10::IValue>& results);

/// Counts one wait of the host for the device, by reason and call site. With FAKE_CUDA_SYNC=error,
/// throws c10::Error instead. Completes all asynchronous copies queued so far.
void count_wait(const std::string& reason);

/// Counts a wait for an event after which `queued` operators were called. The wait is short if many
/// operators were called since, so it is listed separately and is never an error. Completes the
/// asynchronous copies with numbers below `ticket` (see copies.h).
void count_event_wait(int64_t queued, int64_t ticket);

/// Counts one attention call, by the kernel that it runs, such as "flash".
void count_attention(const std::string& kernel);

/// Returns the number of operators called so far.
int64_t operator_count();

/// Receives the reason and the call site of a wait: the two innermost frames,
/// separated by " < ".
using WaitCallback = void (*)(const char* reason, const char* site);

// Programs and plugins look up these functions with dlsym.
extern "C" {
/// Starts a new section called `name` in the statistics.
__attribute__((visibility("default"))) void fake_cuda_mark(const char* name);

/// Calls `callback` for every wait that count_wait() counts, on the waiting thread; null = none.
__attribute__((visibility("default"))) void fake_cuda_on_wait(WaitCallback callback);

/// Writes the statistics and ends the process with exit code 0.
__attribute__((visibility("default"))) void fake_cuda_finish();
}

/// Writes the statistics to the file FAKE_CUDA_LOG, if that is set.
void write_statistics();

}  // namespace fake_cuda
