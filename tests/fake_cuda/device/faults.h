// Reports accesses of host code to device memory.
#pragma once

namespace fake_cuda {

/// Installs a handler of SIGSEGV that prints who accessed device memory, and then runs the
/// program's own handler. Handlers that the program installs later are called by it, too.
void report_faults();

}  // namespace fake_cuda
