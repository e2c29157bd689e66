// Collective operations on device tensors through host memory.
#include <ATen/ATen.h>

#include "ranks/device_group.h"

namespace dsv3 {
namespace {

class StagedWork final : public Work {
 public:
  StagedWork(std::unique_ptr<Work> work, at::Tensor output, at::Tensor staged)
      : work_(std::move(work)), output_(std::move(output)), staged_(std::move(staged)) {}
  void wait() override {
    const at::NoGradGuard no_grad;
    work_->wait();
    output_.copy_(staged_);
  }

 private:
  const std::unique_ptr<Work> work_;
  at::Tensor output_, staged_;
};

class StagedCommunicator final : public Communicator {
 public:
  StagedCommunicator(std::shared_ptr<Communicator> host, at::Device device)
      : host_(std::move(host)), device_(device) {}

  int64_t rank() const override { return host_->rank(); }
  int64_t size() const override { return host_->size(); }
  at::Device device() const override { return device_; }

  std::unique_ptr<Work> start_all_to_all(at::Tensor output, at::Tensor input,
                                         std::vector<int64_t> output_sizes,
                                         std::vector<int64_t> input_sizes) override {
    const at::Tensor staged = like_on_host(output);
    return finish(host_->start_all_to_all(staged, input.detach().cpu(), std::move(output_sizes),
                                          std::move(input_sizes)),
                  output, staged);
  }
  std::unique_ptr<Work> start_all_gather(at::Tensor output, at::Tensor input) override {
    const at::Tensor staged = like_on_host(output);
    return finish(host_->start_all_gather(staged, input.detach().cpu()), output, staged);
  }
  std::unique_ptr<Work> start_broadcast(at::Tensor tensor, int64_t root) override {
    const at::Tensor staged = tensor.detach().cpu();
    return finish(host_->start_broadcast(staged, root), tensor, staged);
  }
  std::shared_ptr<Communicator> subgroup(std::span<const int64_t> ranks) override {
    const std::shared_ptr<Communicator> group = host_->subgroup(ranks);
    return group ? std::make_shared<StagedCommunicator>(group, device_) : nullptr;
  }

 private:
  static at::Tensor like_on_host(const at::Tensor& tensor) {
    return at::empty(tensor.sizes(), tensor.options().device(at::kCPU));
  }
  static std::unique_ptr<Work> finish(std::unique_ptr<Work> work, const at::Tensor& output,
                                      const at::Tensor& staged) {
    return std::make_unique<StagedWork>(std::move(work), output, staged);
  }

  const std::shared_ptr<Communicator> host_;
  const at::Device device_;
};

}  // namespace

std::shared_ptr<Communicator> staged_communicator(std::shared_ptr<Communicator> host,
                                                  at::Device device) {
  return std::make_shared<StagedCommunicator>(std::move(host), device);
}

}  // namespace dsv3
