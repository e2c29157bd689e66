// Connects ranks with c10d's process groups.
#define USE_C10D_GLOO
#include <exception>
#include <mutex>
#include <net/if.h>
#include <thread>

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <dsv3/runtime/failure.h>
#include <dsv3/runtime/rank_threads.h>
#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/error.h>

#include "ranks/device_group.h"
#include "ranks/nccl.h"
#include "ranks/store.h"
#include "support/host.h"

namespace dsv3 {
namespace {

using std::chrono::milliseconds;
using SharedPeers = std::shared_ptr<const Peers>;

/// The first line of an error of Gloo, without the place in its source, or what NCCL names as the
/// last error.
std::string text_of(const std::string& error) {
  constexpr std::string_view kLast = "Last error:\n";
  if (const size_t last = error.find(kLast); last != error.npos)
    return "NCCL: " + error.substr(last + kLast.size(),
                                   error.find('\n', last + kLast.size()) - last - kLast.size());
  const size_t place = error.starts_with('[') ? error.find("] ") : error.npos;
  const std::string text = place == error.npos ? error : error.substr(place + 2);
  return text.substr(0, text.find('\n'));
}

/// Throws an error that describes a failed operation.
[[noreturn]] void fail_operation(const SharedPeers& peers, const std::string& operation,
                                 const std::string& error) {
  const std::string text = text_of(error);
  if (text.find("Resource temporarily unavailable") != text.npos)  // EAGAIN of a new thread
    throw Error(operation + " failed: cannot start a thread (" + text +
                    "); raise the limits on memory and processes (ulimit -v, -u)",
                ExitCode::out_of_memory);
  std::string cause = failure_of_peers(peers);
  if (cause.empty()) cause = "a connection to another rank was lost";
  // Gloo: "Timed out waiting 5000ms for recv operation to complete". NCCL: "Watchdog caught
  // collective operation timeout: ...".
  const bool waited = text.find("imed out") != text.npos || text.find("imeout") != text.npos;
  throw Error("rank " + std::to_string(peers->rank) + " of " + std::to_string(peers->hosts.size()) +
                  " on " + peers->hosts[size_t(peers->rank)] + ": " + operation + " failed" +
                  (waited ? " after " + std::to_string(peers->timeout.count() / 1000) + " s" : "") +
                  ": " + cause + " (" + text + ")",
              ExitCode::peer_lost);
}

class GroupWork final : public Work {
 public:
  GroupWork(c10::intrusive_ptr<c10d::Work> work, SharedPeers peers, std::string operation)
      : work_(std::move(work)), peers_(std::move(peers)), operation_(std::move(operation)) {}
  void wait() override {
    try {
      work_->wait();
    } catch (const std::exception& error) {
      fail_operation(peers_, operation_, error.what());
    }
  }

 private:
  const c10::intrusive_ptr<c10d::Work> work_;
  const SharedPeers peers_;
  const std::string operation_;
};

using Backend = c10::intrusive_ptr<c10d::Backend>;

Backend make_gloo_group(const Peers& peers, const std::string& prefix, int64_t rank, int64_t size) {
  const auto options = c10d::ProcessGroupGloo::Options::create();
  const char* const interface = std::getenv("GLOO_SOCKET_IFNAME");
  if (interface && ::if_nametoindex(interface) == 0)
    throw Error(std::string("environment variable GLOO_SOCKET_IFNAME='") + interface +
                    "' names no network interface of " + host_name() +
                    "; `ip link` lists them; correct or unset it",
                ExitCode::usage);
  options->devices.push_back(
      interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                : c10d::ProcessGroupGloo::createDeviceForHostname(peers.address));
  options->timeout = peers.timeout;
  return c10::make_intrusive<c10d::ProcessGroupGloo>(
      c10::make_intrusive<c10d::PrefixStore>(prefix, peers.store), int(rank), int(size), options);
}

Backend make_group(const Peers& peers, const std::string& name, int64_t rank, int64_t size,
                   at::Device device) {
  if (device.is_cpu()) return make_gloo_group(peers, name, rank, size);
  const auto store = c10::make_intrusive<c10d::PrefixStore>("nccl " + name, peers.store);
  return nccl_library()({store, int(rank), int(size), peers.timeout});
}

/// LibTorch records each operation in a map of the process without a lock, which matters if ranks
/// are threads.
std::mutex recorder_mutex;

class Group final : public Communicator {
 public:
  Group(SharedPeers peers, std::string name, int64_t rank, int64_t size, at::Device device)
      : peers_(std::move(peers)),
        name_(std::move(name)),
        rank_(rank),
        size_(size),
        device_(device) {
    const QuietLibTorch quiet;
    try {
      group_ = make_group(*peers_, name_, rank_, size_, device_);
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      fail_operation(peers_, "connecting group '" + name_ + "'", error.what());
    }
  }
  ~Group() override {
    if (device_.is_cpu() || !group_) return;
    try {
      // After a failure, shutdown() would wait for operations that never end.
      std::uncaught_exceptions() > 0 ? group_->abort() : group_->shutdown();
    } catch (const std::exception&) {  // the failure has been reported
    }
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return size_; }
  at::Device device() const override { return device_; }

  std::unique_ptr<Work> start_all_to_all(at::Tensor output, at::Tensor input,
                                         std::vector<int64_t> output_sizes,
                                         std::vector<int64_t> input_sizes) override {
    const bool equal = output_sizes.empty() && input_sizes.empty();
    return start("all_to_all", equal ? shape_of(input) : "uneven parts", input, [&] {
      if (!equal && checks_operations()) compare_parts(output, input, output_sizes, input_sizes);
      return group_->alltoall_base(output, input, output_sizes, input_sizes);
    });
  }
  std::unique_ptr<Work> start_all_gather(at::Tensor output, at::Tensor input) override {
    return start("all_gather", shape_of(input), input,
                 [&] { return group_->_allgather_base(output, input); });
  }
  std::unique_ptr<Work> start_broadcast(at::Tensor tensor, int64_t root) override {
    std::vector<at::Tensor> tensors{tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return start("broadcast", shape_of(tensor) + " from rank " + std::to_string(root), tensor,
                 [&] { return group_->broadcast(tensors, options); });
  }
  std::shared_ptr<Communicator> subgroup(std::span<const int64_t> ranks) override {
    // Disjoint groups that are created together differ in their first rank.
    const int64_t first = ranks.empty() ? 0 : ranks.front();
    const std::string name =
        name_ + "." + std::to_string(++subgroups_) + "-" + std::to_string(first);
    for (size_t i = 0; i < ranks.size(); ++i)
      if (ranks[i] == rank_)
        return std::make_shared<Group>(peers_, name, int64_t(i), int64_t(ranks.size()), device_);
    return nullptr;
  }

 private:
  static std::string shape_of(const at::Tensor& tensor) {
    return std::to_string(tensor.numel()) + " elements";
  }

  template <class F>
  std::unique_ptr<Work> start(const char* operation, const std::string& shape,
                              const at::Tensor& tensor, const F& f) {
    std::string name =
        std::string(operation) + " " + std::to_string(++operations_) + " of group '" + name_ + "'";
    try {
      if (checks_operations())
        compare(name, std::string(operation) + " of " + shape + " of type " +
                          c10::toString(tensor.scalar_type()));
      const std::scoped_lock lock(recorder_mutex);
      return std::make_unique<GroupWork>(f(), peers_, std::move(name));
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      fail_operation(peers_, name, error.what());
    }
  }

  /// The ranks' rows of equal length, on the host.
  at::Tensor gather_rows(const at::Tensor& row) {
    at::Tensor own = row.to(device_), all = at::empty({size_ * row.numel()}, own.options());
    group_->_allgather_base(all, own)->wait();
    return all.view({size_, -1}).cpu();
  }

  /// Throws on all ranks if they start different operations.
  void compare(const std::string& name, const std::string& operation) {
    constexpr int64_t kLength = 128;
    at::Tensor row = at::zeros({kLength}, at::kByte);
    std::memcpy(row.data_ptr(), operation.data(), std::min<size_t>(operation.size(), kLength - 1));
    const at::Tensor rows = gather_rows(row);
    for (int64_t other = 1; other < size_; ++other)
      if (const auto text = [&](int64_t rank) { return rows[rank].const_data_ptr<uint8_t>(); };
          std::memcmp(text(0), text(other), kLength) != 0)
        throw Error(name + ": ranks disagree: rank 0 of the group starts " +
                    reinterpret_cast<const char*>(text(0)) + ", rank " + std::to_string(other) +
                    " " + reinterpret_cast<const char*>(text(other)));
  }

  /// Throws on all ranks if one of them expects another number of elements than another sends.
  void compare_parts(const at::Tensor& output, const at::Tensor& input,
                     const std::vector<int64_t>& output_sizes,
                     const std::vector<int64_t>& input_sizes) {
    const auto row_of = [&](const std::vector<int64_t>& sizes, const at::Tensor& tensor) {
      return sizes.empty() ? at::full({size_}, tensor.size(0) / size_, at::kLong)
                           : at::tensor(sizes, at::kLong);
    };
    const at::Tensor rows =
        gather_rows(at::cat({row_of(input_sizes, input), row_of(output_sizes, output)}));
    const auto sizes = rows.accessor<int64_t, 2>();
    for (int64_t from = 0; from < size_; ++from)
      for (int64_t to = 0; to < size_; ++to)
        if (sizes[from][to] != sizes[to][size_ + from])
          throw Error("all_to_all " + std::to_string(operations_) + " of group '" + name_ +
                      "': ranks disagree: rank " + std::to_string(from) + " of the group sends " +
                      std::to_string(sizes[from][to]) + " elements to rank " + std::to_string(to) +
                      ", which expects " + std::to_string(sizes[to][size_ + from]));
  }

  const SharedPeers peers_;
  const std::string name_;
  const int64_t rank_, size_;
  const at::Device device_;
  Backend group_;
  int64_t operations_ = 0, subgroups_ = 0;
};

}  // namespace

Ranks connect(const RankContext& context, double timeout) {
  if (context.world == 1) return {};
  const auto peers = meet(context, milliseconds(int64_t(timeout * 1000)), version_of_ranks());
  const auto world = std::make_shared<Group>(peers, "world", context.rank, context.world, at::kCPU);
  return {world, world, peers};
}

namespace {

bool uses_nccl(at::Device device, int64_t ranks) {
  const char* const value = std::getenv("DSV3_RANKS");
  const std::string choice = value ? value : "";
  if (!choice.empty() && choice != "nccl" && choice != "gloo")
    throw Error("environment variable DSV3_RANKS='" + choice +
                    "' is neither nccl nor gloo, which copies tensors through host memory; "
                    "correct or unset it",
                ExitCode::usage);
  return device.is_cuda() && choice != "gloo" && (ranks > 1 || choice == "nccl");
}

/// A single process as its only peer.
SharedPeers only_peer() {
  const auto peers = std::make_shared<Peers>();
  peers->store = c10::make_intrusive<c10d::HashStore>();
  peers->hosts = {host_name()};
  peers->timeout = std::chrono::minutes(10);
  return peers;
}

}  // namespace

void require_device_ranks(at::Device device, int64_t ranks) {
  if (uses_nccl(device, ranks)) nccl_library();
}

void connect_device(Ranks& ranks, at::Device device) {
  if (device.is_cpu()) return;
  if (!uses_nccl(device, ranks.size())) {
    ranks.world = ranks.size() == 1 ? planned_communicator(1, device)
                                    : staged_communicator(ranks.control, device);
    return;
  }
  ranks.world = std::make_shared<Group>(ranks.peers ? ranks.peers : only_peer(), "world",
                                        ranks.control->rank(), ranks.size(), device);
  // Connects the ranks now, so that a failure to do so is reported before training.
  at::Tensor one = at::ones({1}, at::TensorOptions().device(device));
  ranks.world->broadcast(one, 0);
}

void publish_failure(const Ranks& ranks) noexcept {
  if (!ranks.peers || current_exception_code() == ExitCode::peer_lost) return;
  publish_failure(ranks.peers, current_exception_text());
}

namespace {

/// The flight recorder of c10d keeps a list of groups without a lock, so that threads damage it. It
/// reads this variable when the first group is created. The variable is restored at the end.
class NoFlightRecorder {
 public:
  NoFlightRecorder() {
    if (const char* value = std::getenv(kName)) before_ = value;
    ::setenv(kName, "0", /*overwrite=*/1);
  }
  ~NoFlightRecorder() {
    if (before_)
      ::setenv(kName, before_->c_str(), /*overwrite=*/1);
    else
      ::unsetenv(kName);
  }
  NoFlightRecorder(const NoFlightRecorder&) = delete;

 private:
  static constexpr const char* kName = "TORCH_FR_BUFFER_SIZE";
  std::optional<std::string> before_;
};

}  // namespace

void on_ranks(int64_t ranks, const std::function<void(std::shared_ptr<Communicator>)>& f) {
  const NoFlightRecorder no_recorder;
  constexpr milliseconds kTimeout{30'000};
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::exception_ptr> errors(size_t(ranks), nullptr);
  {
    std::vector<std::jthread> threads;
    for (int64_t rank = 0; rank < ranks; ++rank)
      threads.emplace_back([&, rank] {
        const auto peers = std::make_shared<Peers>();
        peers->store = store;
        peers->timeout = kTimeout;
        peers->hosts.assign(size_t(ranks), host_name());
        peers->rank = rank;
        peers->address = "127.0.0.1";
        Ranks own{nullptr, nullptr, peers};
        try {
          own.world = std::make_shared<Group>(peers, "world", rank, ranks, at::kCPU);
          own.world->barrier();  // a rank that leaves earlier would break the others' connections
          f(own.world);
        } catch (...) {
          errors[size_t(rank)] = std::current_exception();
          publish_failure(own);
        }
      });
  }
  std::exception_ptr first;
  for (const std::exception_ptr& error : errors) {
    if (!error) continue;
    try {
      std::rethrow_exception(error);
    } catch (const Error& lost) {
      if (!first && lost.code() == ExitCode::peer_lost) first = error;
      if (lost.code() == ExitCode::peer_lost) continue;
      throw;
    }
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace dsv3
