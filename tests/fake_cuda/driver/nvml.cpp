// A fake NVML, libnvidia-ml.so.1, with the functions that report the driver's version.
#include <cstdio>

namespace {

constexpr int kSuccess = 0, kUninitialized = 1;

int users = 0;  // calls of nvmlInit without one of nvmlShutdown

}  // namespace

extern "C" {

int nvmlInit_v2() {
  ++users;
  return kSuccess;
}

int nvmlShutdown() {
  if (users == 0) return kUninitialized;
  --users;
  return kSuccess;
}

int nvmlSystemGetDriverVersion(char* text, unsigned length) {
  if (users == 0) return kUninitialized;
  std::snprintf(text, length, "580.82.07");
  return kSuccess;
}

}  // extern "C"
