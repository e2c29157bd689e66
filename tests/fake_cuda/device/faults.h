// Reports host code that accesses device memory.
#pragma once

namespace fake_cuda {

/// Installs a SIGSEGV handler that prints a backtrace if host code accessed device memory, and then
/// calls the program's handler, even one that the program installs later.
void report_faults();

/// Receives a description of the access.
using FaultCallback = void (*)(const char* text);

/// Calls `callback` in the signal handler if host code accesses device memory or the reverse.
/// Programs look up this function with dlsym.
extern "C" __attribute__((visibility("default"))) void fake_cuda_on_fault(FaultCallback callback);

}  // namespace fake_cuda
