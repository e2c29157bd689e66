// Registers the fake device with LibTorch: the device guard, the hooks, and the code that runs when
// the library is loaded and when the program exits.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "capability.h"
#include "copies.h"
#include "faults.h"
#include "memory.h"
#include "statistics.h"

namespace fake_cuda {
namespace {

c10::Device device_of_thread() {
  return {c10::kCUDA, current_device()};
}
constexpr c10::StreamId kPooledStreams = 4;

/// State that record() stores in an event.
struct Recorded {
  int64_t operators;  // number of operators called before the event
  int64_t copy;       // number of the next asynchronous copy
};

/// A generator on the device. Its numbers differ from CUDA's.
struct DeviceGenerator final : at::CPUGeneratorImpl {
  explicit DeviceGenerator(c10::DeviceIndex index) {
    device_ = c10::Device(c10::kCUDA, std::max<c10::DeviceIndex>(index, 0));
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::CUDA);
  }

 private:
  CPUGeneratorImpl* clone_impl() const override {
    auto* copy = new DeviceGenerator(device_.index());
    copy->set_state(*get_state());
    return copy;
  }
};

/// Id of this thread's current stream.
thread_local c10::StreamId current_stream = 0;

/// Streams have ids but do not affect the execution order: a kernel runs as soon as it is called.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device previous = device_of_thread();
    setDevice(device);
    return previous;
  }
  c10::Device getDevice() const override { return device_of_thread(); }
  void setDevice(c10::Device device) const override {
    if (device.has_index()) set_current_device(device.index());
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index() && device.index() < device_count()) set_current_device(device.index());
  }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count(); }

  c10::Stream getStream(c10::Device device) const override {
    return stream(device, current_stream);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return stream(device, 0); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return pooled(device);
  }
  c10::Stream getNewStream(c10::Device device, int) const override { return pooled(device); }
  c10::Stream exchangeStream(c10::Stream next) const override {
    return stream(next.device(), std::exchange(current_stream, next.id()));
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { count_wait("synchronize stream"); }
  void synchronizeDevice(c10::DeviceIndex) const override { count_wait("synchronize device"); }

  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {
    auto*& recorded = reinterpret_cast<Recorded*&>(*event);
    if (!recorded) recorded = new Recorded;
    *recorded = {operator_count(), next_copy()};
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void* event) const override {
    if (event) complete_copies(static_cast<Recorded*>(event)->copy);
    return true;
  }
  void synchronizeEvent(void* event) const override {
    if (!event) return;
    const Recorded& recorded = *static_cast<Recorded*>(event);
    count_event_wait(operator_count() - recorded.operators, recorded.copy);
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    delete static_cast<Recorded*>(event);
  }
  double elapsedTime(void*, void*, c10::DeviceIndex) const override { return 0; }

 private:
  static c10::Stream stream(c10::Device device, c10::StreamId id) {
    const c10::DeviceIndex index = device.has_index() ? device.index() : current_device();
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(c10::kCUDA, index), id);
  }
  static c10::Stream pooled(c10::Device device) {
    static std::atomic<c10::StreamId> next{0};
    return stream(device, 1 + next++ % kPooledStreams);
  }
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

/// The constructor runs when the library is loaded, the destructor when the program exits.
const struct Lifetime {
  Lifetime() {
    c10::SetAllocator(c10::kCUDA, &heap(), 10);
    report_faults();
  }
  ~Lifetime() { write_statistics(); }
} lifetime;

}  // namespace

Capability capability() {
  static const Capability value = [] {
    Capability parsed;
    if (const char* text = std::getenv("FAKE_CUDA_CAPABILITY"))
      std::sscanf(text, "%d.%d", &parsed.major, &parsed.minor);
    return parsed;
  }();
  return value;
}

}  // namespace fake_cuda

namespace at {  // REGISTER_CUDA_HOOKS must be used in this namespace

struct FakeCudaHooks final : CUDAHooksInterface {
  explicit FakeCudaHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  bool hasCuDNN() const override { return true; }
  bool compiledWithCuDNN() const override { return true; }
  bool supportsDilatedConvolutionWithCuDNN() const override { return true; }
  bool supportsDepthwiseConvolutionWithCuDNN() const override { return true; }
  bool supportsBFloat16ConvolutionWithCuDNNv8() const override {
    return fake_cuda::is_ampere_or_newer();
  }
  long versionCuDNN() const override { return 91900; }
  long versionRuntimeCuDNN() const override { return 91900; }
  long versionCUDART() const override { return 13000; }
  std::string showConfig() const override { return "fake CUDA device for tests\n"; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return fake_cuda::device_count(); }
  int getNumGPUs() const override { return fake_cuda::device_count(); }
  DeviceIndex current_device() const override { return fake_cuda::current_device(); }
  DeviceIndex getCurrentDevice() const override { return fake_cuda::current_device(); }
  void setCurrentDevice(DeviceIndex index) const override { fake_cuda::set_current_device(index); }
  DeviceIndex exchangeDevice(DeviceIndex index) const override {
    const DeviceIndex previous = fake_cuda::current_device();
    if (index >= 0) fake_cuda::set_current_device(index);
    return previous;
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  Device getDeviceFromPtr(void* pointer) const override {
    TORCH_CHECK(fake_cuda::on_device(pointer), "The pointer is not an address of device memory");
    return Device(kCUDA, fake_cuda::current_device());
  }
  Allocator* getCUDADeviceAllocator() const override { return &fake_cuda::heap(); }
  Allocator* getPinnedMemoryAllocator() const override { return &fake_cuda::pinned_heap(); }
  bool isPinnedPtr(const void* pointer) const override { return fake_cuda::is_pinned(pointer); }
  void deviceSynchronize(DeviceIndex) const override {
    fake_cuda::count_wait("synchronize device");
  }
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    static const Generator generator = make_generator<fake_cuda::DeviceGenerator>(0);
    return generator;
  }
  Generator getNewGenerator(DeviceIndex index) const override {
    return make_generator<fake_cuda::DeviceGenerator>(index);
  }
};

using CUDAHooks = FakeCudaHooks;
REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
