// Sums and maxima on top of the collective operations that move data.
#include <algorithm>
#include <map>
#include <numeric>

#include <ATen/ATen.h>

#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

/// Above this size, all_reduce_sum() sends each rank 1/size() of the tensor instead of all of it.
constexpr int64_t kLargeBytes = 1 << 16;

at::ScalarType sum_type(const at::Tensor& tensor) {
  const bool narrow = tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf;
  return narrow ? at::kFloat : tensor.scalar_type();
}

/// Sums the rows of `parts` [ranks, n] in order.
at::Tensor ordered_sum(const at::Tensor& parts) {
  at::Tensor sum = parts[0].to(sum_type(parts), /*non_blocking=*/false, /*copy=*/true);
  for (int64_t i = 1; i < parts.size(0); ++i) sum += parts[i];
  return sum;
}

class ReduceScatter final : public Work {
 public:
  ReduceScatter(std::unique_ptr<Work> exchange, at::Tensor parts, at::Tensor output)
      : exchange_(std::move(exchange)), parts_(std::move(parts)), output_(std::move(output)) {}
  void wait() override {
    exchange_->wait();
    output_.view(-1).copy_(ordered_sum(parts_));
  }

 private:
  std::unique_ptr<Work> exchange_;
  at::Tensor parts_, output_;
};

class Done final : public Work {
 public:
  void wait() override {}
};

/// Rank 0 of `size` ranks, of which the others would have equal tensors.
class PlannedCommunicator final : public Communicator {
 public:
  PlannedCommunicator(int64_t size, at::Device device) : size_(size), device_(device) {}
  int64_t rank() const override { return 0; }
  int64_t size() const override { return size_; }
  at::Device device() const override { return device_; }
  std::unique_ptr<Work> start_all_to_all(at::Tensor output, at::Tensor input,
                                         std::vector<int64_t> output_sizes,
                                         std::vector<int64_t>) override {
    if (output_sizes.empty() || size_ == 1)
      output.view({size_, -1}).copy_(input.view({size_, -1})[0]);
    else
      output.zero_();
    return std::make_unique<Done>();
  }
  std::unique_ptr<Work> start_all_gather(at::Tensor output, at::Tensor input) override {
    output.view({size_, -1}).copy_(input.reshape({1, -1}));
    return std::make_unique<Done>();
  }
  std::unique_ptr<Work> start_broadcast(at::Tensor, int64_t) override {
    return std::make_unique<Done>();
  }
  std::shared_ptr<Communicator> subgroup(std::span<const int64_t> ranks) override {
    if (std::ranges::find(ranks, 0) == ranks.end()) return nullptr;
    return std::make_shared<PlannedCommunicator>(int64_t(ranks.size()), device_);
  }

 private:
  const int64_t size_;
  const at::Device device_;
};

}  // namespace

Work::~Work() = default;
Communicator::~Communicator() = default;

std::unique_ptr<Work> Communicator::start_reduce_scatter_sum(at::Tensor output, at::Tensor input) {
  TORCH_CHECK(input.numel() == output.numel() * size(), "reduce_scatter: the input has ",
              input.numel(), " elements and the output ", output.numel(), ", with ", size(),
              " ranks");
  at::Tensor parts = at::empty({size(), output.numel()}, input.options());
  auto exchange = start_all_to_all(parts.view(-1), input.view(-1));
  return std::make_unique<ReduceScatter>(std::move(exchange), std::move(parts), std::move(output));
}

at::Tensor Communicator::gathered(const at::Tensor& tensor) {
  at::Tensor all = at::empty({size(), tensor.numel()}, tensor.options());
  start_all_gather(all.view(-1), tensor.contiguous().view(-1))->wait();
  return all;
}

void Communicator::all_reduce_sum(at::Tensor& tensor) {
  if (size() == 1 || tensor.numel() == 0) return;
  if (int64_t(tensor.nbytes()) <= kLargeBytes) {
    tensor.copy_(ordered_sum(gathered(tensor)).view_as(tensor));
    return;
  }
  const int64_t part = (tensor.numel() + size() - 1) / size();
  at::Tensor padded = at::zeros({part * size()}, tensor.options());
  padded.narrow(0, 0, tensor.numel()).copy_(tensor.reshape(-1));
  const at::Tensor own = padded.narrow(0, part * rank(), part);
  start_reduce_scatter_sum(own, padded)->wait();
  start_all_gather(padded, own)->wait();
  tensor.copy_(padded.narrow(0, 0, tensor.numel()).view_as(tensor));
}

void Communicator::all_reduce_max(at::Tensor& tensor) {
  if (size() == 1 || tensor.numel() == 0) return;
  tensor.copy_(gathered(tensor).amax(0).view_as(tensor));
}

void Communicator::broadcast(at::Tensor& tensor, int64_t root) {
  start_broadcast(tensor, root)->wait();
}

void Communicator::barrier() {
  at::Tensor nothing = at::zeros({1}, at::TensorOptions().dtype(at::kInt).device(device()));
  all_reduce_sum(nothing);
}

std::function<std::shared_ptr<Communicator>(int64_t size)> rank_groups(
    std::shared_ptr<Communicator> world) {
  using Groups = std::map<int64_t, std::shared_ptr<Communicator>>;
  return [world = std::move(world),
          groups = std::make_shared<Groups>()](int64_t size) -> std::shared_ptr<Communicator> {
    if (world->size() == 1) return nullptr;  // there is nothing to divide the work among
    if (world->size() % size != 0)
      throw Error("the run has " + std::to_string(world->size()) +
                      " rank(s), which is not a multiple of " + std::to_string(size),
                  ExitCode::usage);
    std::shared_ptr<Communicator>& group = (*groups)[size];
    if (group) return group;
    std::vector<int64_t> members(static_cast<size_t>(size));
    std::iota(members.begin(), members.end(), world->rank() / size * size);
    return group = world->subgroup(members);
  };
}

std::shared_ptr<Communicator> planned_communicator(int64_t size, at::Device device) {
  return std::make_shared<PlannedCommunicator>(size, device);
}

std::shared_ptr<Communicator> local_communicator() {
  return planned_communicator(1, at::kCPU);
}

}  // namespace dsv3
