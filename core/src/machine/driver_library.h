// Calls functions of NVIDIA's driver libraries, which the build does not require.
#pragma once

#include <dlfcn.h>
#include <string>

namespace dsv3 {

/// A function in a driver library. If the library lacks it, or is null, calling it returns an
/// error.
template <class... Arguments>
class DriverFunction {
 public:
  DriverFunction(void* library, const char* name)
      : function_(library ? reinterpret_cast<int (*)(Arguments...)>(dlsym(library, name))
                          : nullptr) {}
  int operator()(Arguments... arguments) const {
    constexpr int kNotFound = 500;
    return function_ ? function_(arguments...) : kNotFound;
  }

 private:
  int (*function_)(Arguments...);
};

/// Opens a driver library, such as "libcuda.so.1". Returns null and sets `problem` if it does not
/// exist.
void* open_driver_library(const std::string& name, std::string& problem);

}  // namespace dsv3
