// Replaces libdsv3's logging in this executable, so that tests can check the log.
#include <mutex>

#include <dsv3/sdk/log.h>

#include "core/checkpoint/fixture.h"

namespace {
LogCapture* capture = nullptr;
std::mutex mutex;  // ranks are threads
}  // namespace

LogCapture::LogCapture() {
  capture = this;
}
LogCapture::~LogCapture() {
  capture = nullptr;
}

namespace dsv3::log {
// Default visibility makes libdsv3 call this function instead of its own log::write().
__attribute__((visibility("default"))) void write(Level level, const std::string& message) {
  const std::lock_guard lock(mutex);
  if (capture && level >= Level::warning) capture->lines.push_back(message);
}
}  // namespace dsv3::log
