#include "memory.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <vector>

#include <c10/core/Allocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>

#include "../driver/visible.h"

namespace fake_cuda {
namespace {

// Size of each address range. It far exceeds a GPU's memory, because freed blocks are reused only
// for requests of the same size.
constexpr size_t kAddresses = size_t(1) << 40;
constexpr size_t kAlignment = 512;  // in bytes; the same as in CUDA's caching allocator
constexpr size_t kPage = 4096;

/// Address ranges of the same size. Device tensors point into `device`, which no code can access.
/// Their bytes are at the same offset in `bytes`, which only the fake device's kernels use. A
/// kernel that would access host memory accesses `host` instead, which is protected like `device`.
/// Memory protection never changes, so several threads can run kernels at the same time.
struct Ranges {
  char* device = map(PROT_NONE);
  char* bytes = map(PROT_READ | PROT_WRITE);
  char* host = map(PROT_NONE);

  static char* map(int protection) {
    void* range =
        mmap(nullptr, kAddresses, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) {
      std::perror("fake_cuda: cannot reserve addresses");
      std::_Exit(99);
    }
    return static_cast<char*>(range);
  }
};

const Ranges& ranges() {
  static const Ranges instance;
  return instance;
}

size_t rounded(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

class Heap final : public c10::DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::kCUDA, current_device());
    if (bytes == 0) return {nullptr, device};
    const size_t size = rounded(bytes);
    const std::lock_guard lock(mutex_);
    if (live() + size > device_bytes()) {
      ++stats_.num_ooms;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. Tried to allocate ", bytes,
                       " bytes. GPU ", int(device.index()), " has a total capacity of ",
                       device_bytes(), " bytes of which ", device_bytes() - live(),
                       " bytes are free.");
    }
    const size_t offset = take(size);
    blocks_[offset] = {size, bytes};
    count(size, bytes);
    if (!dry()) std::memset(ranges().bytes + offset, 0xff, size);
    char* address = ranges().device + offset;
    return {address, address, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    if (!dry()) std::memcpy(bytes_of(to), bytes_of(from), bytes);
  }

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    const std::lock_guard lock(mutex_);
    all(stats_.reserved_bytes).decrease(size_t(all(stats_.reserved_bytes).current) - live());
  }
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {
    const std::lock_guard lock(mutex_);
    for (Stat* stat : counted()) stat->reset_accumulated();
    stats_.num_ooms = 0;
  }
  void resetPeakStats(c10::DeviceIndex) override {
    const std::lock_guard lock(mutex_);
    for (Stat* stat : counted()) stat->reset_peak();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex) override {
    const std::lock_guard lock(mutex_);
    return {device_bytes() - live(), device_bytes()};
  }

  static void release(void* address);

 private:
  using Stat = c10::CachingAllocator::Stat;
  struct Block {
    size_t size, requested;
  };

  static Stat& all(c10::CachingAllocator::StatArray& stats) {
    return stats[size_t(c10::CachingAllocator::StatType::AGGREGATE)];
  }
  std::vector<Stat*> counted() {
    return {&all(stats_.allocation),   &all(stats_.active),         &all(stats_.allocated_bytes),
            &all(stats_.active_bytes), &all(stats_.reserved_bytes), &all(stats_.requested_bytes)};
  }
  size_t live() { return size_t(all(stats_.allocated_bytes).current); }

  /// Returns the offset of a free block of `size` bytes. Blocks are separated by gaps, so that a
  /// kernel that writes past the end of one block does not change another.
  size_t take(size_t size) {
    std::vector<size_t>& free = free_[size];
    if (!free.empty()) {
      const size_t offset = free.back();
      free.pop_back();
      return offset;
    }
    const size_t offset = end_;
    end_ += size + kAlignment;
    TORCH_CHECK(end_ < kAddresses, "fake_cuda: no addresses left");
    return offset;
  }
  void count(size_t size, size_t requested) {
    all(stats_.allocation).increase(1);
    all(stats_.active).increase(1);
    all(stats_.allocated_bytes).increase(size);
    all(stats_.active_bytes).increase(size);
    all(stats_.requested_bytes).increase(requested);
    const size_t reserved = size_t(all(stats_.reserved_bytes).current);
    if (live() > reserved) all(stats_.reserved_bytes).increase(live() - reserved);
  }
  void free_block(size_t offset) {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(offset);
    TORCH_INTERNAL_ASSERT(found != blocks_.end(), "fake_cuda: no block at this address");
    const Block block = found->second;
    blocks_.erase(found);
    all(stats_.allocation).decrease(1);
    all(stats_.active).decrease(1);
    all(stats_.allocated_bytes).decrease(block.size);
    all(stats_.active_bytes).decrease(block.size);
    all(stats_.requested_bytes).decrease(block.requested);
    if (block.size > (size_t(1) << 20)) {  // returns whole pages to the operating system
      const size_t first = (offset + kPage - 1) / kPage * kPage;
      const size_t last = (offset + block.size) / kPage * kPage;
      if (!dry()) madvise(ranges().bytes + first, last - first, MADV_DONTNEED);
    }
    free_[block.size].push_back(offset);
  }

  std::mutex mutex_;
  size_t end_ = kAlignment;
  std::map<size_t, std::vector<size_t>> free_;  // offsets by size
  std::map<size_t, Block> blocks_;              // by offset
  c10::CachingDeviceAllocator::DeviceStats stats_;
};

Heap& instance() {
  static Heap& heap = *new Heap;  // never destroyed, because static tensors may outlive it
  return heap;
}

void Heap::release(void* address) {
  instance().free_block(size_t(static_cast<char*>(address) - ranges().device));
}

class PinnedHeap final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::kCPU)};
    void* memory = c10::alloc_cpu(bytes);
    const std::lock_guard lock(mutex_);
    blocks_[memory] = bytes;
    return {memory, memory, &release, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  bool contains(const void* pointer) {
    const std::lock_guard lock(mutex_);
    auto after = blocks_.upper_bound(const_cast<void*>(pointer));
    if (after == blocks_.begin()) return false;
    const auto& [memory, bytes] = *--after;
    return pointer < static_cast<char*>(memory) + bytes;
  }
  static void release(void* memory);

 private:
  std::mutex mutex_;
  std::map<void*, size_t> blocks_;  // bytes by address
};

PinnedHeap& pinned_instance() {
  static PinnedHeap& heap = *new PinnedHeap;
  return heap;
}

void PinnedHeap::release(void* memory) {
  PinnedHeap& heap = pinned_instance();
  {
    const std::lock_guard lock(heap.mutex_);
    heap.blocks_.erase(memory);
  }
  c10::free_cpu(memory);
}

}  // namespace

bool dry() {
  static const bool set = std::getenv("FAKE_CUDA_DRY") != nullptr;
  return set;
}

namespace {
thread_local c10::DeviceIndex device_of_thread = 0;
}  // namespace

c10::DeviceIndex device_count() {
  static const auto count = c10::DeviceIndex(visible_gpus().size());
  return count;
}

c10::DeviceIndex current_device() {
  return device_of_thread;
}

void set_current_device(c10::DeviceIndex index) {
  TORCH_CHECK(index >= 0 && index < device_count(), "CUDA error: invalid device ordinal ",
              int(index));
  device_of_thread = index;
}

bool on_device(const void* pointer) {
  return pointer >= ranges().device && pointer < ranges().device + kAddresses;
}

bool replaces_host(const void* pointer) {
  return pointer >= ranges().host && pointer < ranges().host + kAddresses;
}

void* bytes_of(const void* pointer) {
  if (!on_device(pointer)) return ranges().host;
  return ranges().bytes + (static_cast<const char*>(pointer) - ranges().device);
}

size_t device_bytes() {
  static const size_t bytes = [] {
    const char* value = std::getenv("FAKE_CUDA_MEMORY");
    return value ? std::strtoull(value, nullptr, 10) : size_t(85'520'809'984);
  }();
  return bytes;
}

c10::DeviceAllocator& heap() {
  return instance();
}
c10::Allocator& pinned_heap() {
  return pinned_instance();
}
bool is_pinned(const void* pointer) {
  return pinned_instance().contains(pointer);
}

}  // namespace fake_cuda
