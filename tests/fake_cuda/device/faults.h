// Reports host code that accesses device memory.
#pragma once

namespace fake_cuda {

/// Installs a SIGSEGV handler that prints a backtrace if host code accessed device memory, and then
/// calls the program's handler, even one that the program installs later.
void report_faults();

}  // namespace fake_cuda
