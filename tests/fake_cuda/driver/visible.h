// The GPUs selected by FAKE_CUDA_COUNT (default: 1) and CUDA_VISIBLE_DEVICES.
#pragma once

#include <cstdlib>
#include <vector>

/// Returns the indices of the visible GPUs, in the order of CUDA_VISIBLE_DEVICES. As with the real
/// driver, an invalid index hides itself and all GPUs listed after it.
inline std::vector<int> visible_gpus() {
  const char* number = std::getenv("FAKE_CUDA_COUNT");
  const int count = number ? std::atoi(number) : 1;
  std::vector<int> indices;
  const char* listed = std::getenv("CUDA_VISIBLE_DEVICES");
  if (!listed) {
    for (int i = 0; i < count; ++i) indices.push_back(i);
    return indices;
  }
  for (const char* at = listed; *at;) {
    char* end = nullptr;
    const long index = std::strtol(at, &end, 10);
    if (end == at || index < 0 || index >= count) break;
    indices.push_back(int(index));
    at = *end == ',' ? end + 1 : end;
  }
  return indices;
}
