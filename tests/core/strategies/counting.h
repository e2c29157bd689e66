// Counts the memory that ranks allocate and the bytes that they send.
#pragma once

#include <atomic>

#include <ATen/ATen.h>

#include <dsv3/sdk/communicator.h>

namespace dsv3::test {

/// Memory that tensors on the CPU use, allocated by one thread.
struct Memory {
  std::atomic<int64_t> bytes = 0, peak = 0;
};

/// While this object exists, LibTorch allocates tensors on the CPU through it. It counts those of
/// threads that called count().
class CountingAllocator final : public c10::Allocator {
 public:
  CountingAllocator();
  ~CountingAllocator() override;
  /// Counts this thread's allocations in `memory`, which must outlive the tensors.
  static void count(Memory* memory);

  c10::DataPtr allocate(size_t bytes) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void copy_data(void* to, const void* from, size_t count) const override;

 private:
  c10::Allocator* previous_;
};

/// Passes operations to another communicator and adds the bytes that this rank sends to `sent`.
class CountingCommunicator final : public Communicator {
 public:
  CountingCommunicator(std::shared_ptr<Communicator> ranks, std::shared_ptr<int64_t> sent)
      : ranks_(std::move(ranks)), sent_(std::move(sent)) {}
  int64_t rank() const override { return ranks_->rank(); }
  int64_t size() const override { return ranks_->size(); }
  at::Device device() const override { return ranks_->device(); }
  std::unique_ptr<Work> start_all_to_all(at::Tensor output, at::Tensor input,
                                         std::vector<int64_t> output_sizes,
                                         std::vector<int64_t> input_sizes) override;
  std::unique_ptr<Work> start_all_gather(at::Tensor output, at::Tensor input) override;
  std::unique_ptr<Work> start_broadcast(at::Tensor tensor, int64_t root) override;
  std::shared_ptr<Communicator> subgroup(std::span<const int64_t> ranks) override;

 private:
  std::shared_ptr<Communicator> ranks_;
  std::shared_ptr<int64_t> sent_;
};

}  // namespace dsv3::test
