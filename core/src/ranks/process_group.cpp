// Connects ranks with c10d's process groups.
#define USE_C10D_GLOO
#include <mutex>
#include <thread>

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <dsv3/runtime/failure.h>
#include <dsv3/runtime/rank_threads.h>
#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/error.h>

#include "ranks/store.h"
#include "support/host.h"

namespace dsv3 {
namespace {

using std::chrono::milliseconds;
using SharedPeers = std::shared_ptr<const Peers>;

/// The first line of an error of Gloo, without the place in its source.
std::string text_of(const std::string& error) {
  const size_t place = error.starts_with('[') ? error.find("] ") : error.npos;
  const std::string text = place == error.npos ? error : error.substr(place + 2);
  return text.substr(0, text.find('\n'));
}

/// Throws an error that describes a failed operation.
[[noreturn]] void fail_operation(const SharedPeers& peers, const std::string& operation,
                                 const std::string& error) {
  const std::string text = text_of(error);
  std::string cause = failure_of_peers(peers);
  if (cause.empty()) cause = "a connection to another rank was lost";
  // Gloo: "Timed out waiting 5000ms for recv operation to complete".
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

c10::intrusive_ptr<c10d::ProcessGroupGloo> make_group(const Peers& peers, const std::string& prefix,
                                                      int64_t rank, int64_t size) {
  const auto options = c10d::ProcessGroupGloo::Options::create();
  const char* const interface = std::getenv("GLOO_SOCKET_IFNAME");
  options->devices.push_back(
      interface ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                : c10d::ProcessGroupGloo::createDeviceForHostname(peers.address));
  options->timeout = peers.timeout;
  return c10::make_intrusive<c10d::ProcessGroupGloo>(
      c10::make_intrusive<c10d::PrefixStore>(prefix, peers.store), int(rank), int(size), options);
}

/// LibTorch records each operation in a map of the process without a lock, which matters if ranks
/// are threads.
std::mutex recorder_mutex;

class Group final : public Communicator {
 public:
  Group(SharedPeers peers, std::string name, int64_t rank, int64_t size)
      : peers_(std::move(peers)), name_(std::move(name)), rank_(rank), size_(size) {
    const QuietLibTorch quiet;
    try {
      group_ = make_group(*peers_, name_, rank_, size_);
    } catch (const std::exception& error) {
      fail_operation(peers_, "connecting group '" + name_ + "'", error.what());
    }
  }

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return size_; }
  at::Device device() const override { return at::kCPU; }

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
        return std::make_shared<Group>(peers_, name, int64_t(i), int64_t(ranks.size()));
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

  /// The ranks' rows of equal length.
  at::Tensor gather_rows(const at::Tensor& row) {
    at::Tensor rows = at::empty({size_, row.numel()}, row.options());
    at::Tensor all = rows.view(-1), own = row;
    group_->_allgather_base(all, own)->wait();
    return rows;
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
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
  int64_t operations_ = 0, subgroups_ = 0;
};

}  // namespace

Ranks connect(const RankContext& context, double timeout) {
  if (context.world == 1) return {};
  const auto peers = meet(context, milliseconds(int64_t(timeout * 1000)), version_of_ranks());
  const auto world = std::make_shared<Group>(peers, "world", context.rank, context.world);
  return {world, world, peers};
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
          own.world = std::make_shared<Group>(peers, "world", rank, ranks);
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
