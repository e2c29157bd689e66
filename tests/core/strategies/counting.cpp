#include "counting.h"

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#include <c10/core/CPUAllocator.h>

namespace dsv3::test {
namespace {

constexpr size_t kAlignment = 64;
constexpr uint8_t kPriority = 10;  // above the built-in allocator's

thread_local Memory* counted = nullptr;

/// Is stored in front of the data.
struct Header {
  Memory* memory;
  size_t bytes;
};
static_assert(sizeof(Header) <= kAlignment);

void release(void* data) {
  if (!data) return;
  void* start = static_cast<std::byte*>(data) - kAlignment;
  const auto* header = static_cast<Header*>(start);
  if (header->memory) header->memory->bytes -= int64_t(header->bytes);
  std::free(start);
}

}  // namespace

CountingAllocator::CountingAllocator() : previous_(c10::GetCPUAllocator()) {
  c10::SetCPUAllocator(this, kPriority);
}

CountingAllocator::~CountingAllocator() {
  c10::SetCPUAllocator(previous_, kPriority);
}

void CountingAllocator::count(Memory* memory) {
  counted = memory;
}

c10::DataPtr CountingAllocator::allocate(size_t bytes) {
  if (bytes == 0) return {nullptr, c10::Device(c10::kCPU)};
  const size_t size = (bytes + 2 * kAlignment - 1) / kAlignment * kAlignment;
  void* start = std::aligned_alloc(kAlignment, size);
  if (!start) throw std::bad_alloc();
  new (start) Header{counted, bytes};
  if (counted) {
    counted->bytes += int64_t(bytes);
    if (counted->bytes > counted->peak) counted->peak = counted->bytes.load();
  }
  void* data = static_cast<std::byte*>(start) + kAlignment;
  return {data, data, release, c10::Device(c10::kCPU)};
}

c10::DeleterFnPtr CountingAllocator::raw_deleter() const {
  return release;
}

void CountingAllocator::copy_data(void* to, const void* from, size_t count) const {
  std::memcpy(to, from, count);
}

std::unique_ptr<Work> CountingCommunicator::start_all_to_all(at::Tensor output, at::Tensor input,
                                                             std::vector<int64_t> output_sizes,
                                                             std::vector<int64_t> input_sizes) {
  const int64_t rows = input.dim() > 0 ? input.size(0) : 0;
  const int64_t kept = input_sizes.empty() ? rows / size() : input_sizes[size_t(rank())];
  if (rows > 0) *sent_ += int64_t(input.nbytes()) / rows * (rows - kept);
  return ranks_->start_all_to_all(output, input, output_sizes, input_sizes);
}

std::unique_ptr<Work> CountingCommunicator::start_all_gather(at::Tensor output, at::Tensor input) {
  *sent_ += int64_t(input.nbytes()) * (size() - 1);
  return ranks_->start_all_gather(output, input);
}

std::unique_ptr<Work> CountingCommunicator::start_broadcast(at::Tensor tensor, int64_t root) {
  if (rank() == root) *sent_ += int64_t(tensor.nbytes()) * (size() - 1);
  return ranks_->start_broadcast(tensor, root);
}

std::shared_ptr<Communicator> CountingCommunicator::subgroup(std::span<const int64_t> ranks) {
  auto group = ranks_->subgroup(ranks);
  return group ? std::make_shared<CountingCommunicator>(std::move(group), sent_) : nullptr;
}

}  // namespace dsv3::test
