// Describes the exception that is being handled, whatever its type.
#pragma once

#include <string>

#include <dsv3/sdk/error.h>

namespace dsv3 {

/// Returns the message of the current exception, without LibTorch's backtrace.
std::string current_exception_text();

/// Returns the exit code for the current exception: that of a dsv3::Error, out_of_memory, or
/// failed.
ExitCode current_exception_code();

}  // namespace dsv3
