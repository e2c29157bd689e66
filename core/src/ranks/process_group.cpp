// Connects ranks with c10d's process groups. The only file that includes c10d's headers.
#define USE_C10D_GLOO
#include <thread>

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <dsv3/runtime/rank_threads.h>
#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/error.h>

#include "support/host.h"

namespace dsv3 {
namespace {

using std::chrono::milliseconds;

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

/// What all groups of a process share.
struct Peers {
  c10::intrusive_ptr<c10d::Store> store;
  std::vector<std::string> hosts;  // of each rank of the run
  milliseconds timeout;
  int64_t rank = 0;
};

/// Throws an error that describes a failed operation.
[[noreturn]] void fail_operation(const Peers& peers, const std::string& operation,
                                 const std::string& cause) {
  throw Error("rank " + std::to_string(peers.rank) + " of " + std::to_string(peers.hosts.size()) +
                  " on " + peers.hosts[size_t(peers.rank)] + ": " + operation +
                  " failed, because another rank ended, or did not take part within " +
                  std::to_string(peers.timeout.count() / 1000) + " s (" + first_line(cause) + ")",
              ExitCode::peer_lost);
}

class GroupWork final : public Work {
 public:
  GroupWork(c10::intrusive_ptr<c10d::Work> work, std::shared_ptr<const Peers> peers,
            std::string operation)
      : work_(std::move(work)), peers_(std::move(peers)), operation_(std::move(operation)) {}
  void wait() override {
    try {
      work_->wait();
    } catch (const std::exception& error) {
      fail_operation(*peers_, operation_, error.what());
    }
  }

 private:
  const c10::intrusive_ptr<c10d::Work> work_;
  const std::shared_ptr<const Peers> peers_;
  const std::string operation_;
};

c10::intrusive_ptr<c10d::ProcessGroupGloo> make_group(const Peers& peers, const std::string& prefix,
                                                      int64_t rank, int64_t size) {
  const auto options = c10d::ProcessGroupGloo::Options::create();
  // The interface by which the ranks reach each other, not the one of the host's name.
  const bool local = std::ranges::all_of(
      peers.hosts, [&](const std::string& host) { return host == peers.hosts[0]; });
  options->devices.push_back(local ? c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")
                                   : c10d::ProcessGroupGloo::createDefaultDevice());
  options->timeout = peers.timeout;
  return c10::make_intrusive<c10d::ProcessGroupGloo>(
      c10::make_intrusive<c10d::PrefixStore>(prefix, peers.store), int(rank), int(size), options);
}

class Group final : public Communicator {
 public:
  Group(std::shared_ptr<const Peers> peers, std::string name, int64_t rank, int64_t size)
      : peers_(std::move(peers)), name_(std::move(name)), rank_(rank), size_(size) {
    try {
      group_ = make_group(*peers_, name_, rank_, size_);
    } catch (const std::exception& error) {
      fail_operation(*peers_, "connecting the group '" + name_ + "'", error.what());
    }
  }

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return size_; }
  at::Device device() const override { return at::kCPU; }

  std::unique_ptr<Work> start_all_to_all(at::Tensor output, at::Tensor input,
                                         std::vector<int64_t> output_sizes,
                                         std::vector<int64_t> input_sizes) override {
    return start("all_to_all",
                 [&] { return group_->alltoall_base(output, input, output_sizes, input_sizes); });
  }
  std::unique_ptr<Work> start_all_gather(at::Tensor output, at::Tensor input) override {
    return start("all_gather", [&] { return group_->_allgather_base(output, input); });
  }
  std::unique_ptr<Work> start_broadcast(at::Tensor tensor, int64_t root) override {
    std::vector<at::Tensor> tensors{tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return start("broadcast", [&] { return group_->broadcast(tensors, options); });
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
  template <class F>
  std::unique_ptr<Work> start(const char* operation, const F& f) {
    std::string name = std::string(operation) + " " + std::to_string(++operations_) +
                       " of the group '" + name_ + "'";
    try {
      return std::make_unique<GroupWork>(f(), peers_, std::move(name));
    } catch (const std::exception& error) {
      fail_operation(*peers_, name, error.what());
    }
  }

  const std::shared_ptr<const Peers> peers_;
  const std::string name_;
  const int64_t rank_, size_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
  int64_t operations_ = 0, subgroups_ = 0;
};

c10::intrusive_ptr<c10d::Store> open_store(const RankContext& context, milliseconds timeout) {
  const bool server = context.rank == 0 && !context.external_store;
  const std::string place = context.address + ":" + std::to_string(context.port);
  c10d::TCPStoreOptions options;
  options.port = uint16_t(context.port);
  options.isServer = server;
  options.numWorkers = size_t(context.world);
  options.waitWorkers = false;
  options.timeout = timeout;
  try {
    return c10::make_intrusive<c10d::TCPStore>(context.address, options);
  } catch (const std::exception& error) {
    if (server)
      throw Error("rank 0 cannot listen on " + place + ": " + first_line(error.what()) +
                      "; set MASTER_PORT to another port",
                  ExitCode::usage);
    throw Error("rank " + std::to_string(context.rank) + " on " + host_name() +
                    " cannot reach rank 0 at " + place +
                    " (MASTER_ADDR, MASTER_PORT): " + first_line(error.what()),
                ExitCode::peer_lost);
  }
}

std::string key_of(int64_t rank) {
  return "dsv3/rank/" + std::to_string(rank);
}

/// The ranks that have not started yet, such as "1, 3".
std::string missing_ranks(c10d::Store& store, int64_t world) {
  std::string missing;
  for (int64_t rank = 0; rank < world; ++rank)
    if (!store.check({key_of(rank)}))
      missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
  return missing;
}

/// Waits until all ranks are there. Returns their hosts.
std::vector<std::string> meet(c10d::Store& store, const RankContext& context,
                              milliseconds timeout) {
  if (store.add("dsv3/count/" + std::to_string(context.rank), 1) > 1)
    throw Error("two processes are rank " + std::to_string(context.rank) + " of the run at " +
                    context.address + ":" + std::to_string(context.port) +
                    "; stop the other run, or give this one another MASTER_PORT",
                ExitCode::usage);
  const std::string host = host_name();
  store.set(key_of(context.rank), std::vector<uint8_t>(host.begin(), host.end()));
  std::vector<std::string> keys, hosts;
  for (int64_t rank = 0; rank < context.world; ++rank) keys.push_back(key_of(rank));
  try {
    store.wait(keys, timeout);
    for (const std::string& key : keys) {
      const std::vector<uint8_t> bytes = store.get(key);
      hosts.emplace_back(bytes.begin(), bytes.end());
    }
  } catch (const std::exception& error) {
    std::string missing;
    try {
      missing = missing_ranks(store, context.world);
    } catch (const std::exception&) {
      missing = "0";  // it keeps the store
    }
    throw Error("rank " + std::to_string(context.rank) + " on " + host + " waited " +
                    std::to_string(timeout.count() / 1000) + " s for the other ranks; missing: " +
                    missing + " of 0 to " + std::to_string(context.world - 1),
                ExitCode::peer_lost);
  }
  return hosts;
}

}  // namespace

Ranks connect(const RankContext& context, double timeout) {
  if (context.world == 1) return {};
  const milliseconds limit(int64_t(timeout * 1000));
  auto peers = std::make_shared<Peers>();
  peers->store = open_store(context, limit);
  peers->hosts = meet(*peers->store, context, limit);
  peers->timeout = limit;
  peers->rank = context.rank;
  return {std::make_shared<Group>(std::move(peers), "world", context.rank, context.world)};
}

void on_ranks(int64_t ranks, const std::function<void(std::shared_ptr<Communicator>)>& f) {
  constexpr milliseconds kTimeout{30'000};
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const std::vector<std::string> hosts(size_t(ranks), host_name());
  std::vector<std::exception_ptr> errors(size_t(ranks), nullptr);
  {
    std::vector<std::jthread> threads;
    for (int64_t rank = 0; rank < ranks; ++rank)
      threads.emplace_back([&, rank] {
        try {
          const auto peers = std::make_shared<Peers>(Peers{store, hosts, kTimeout, rank});
          f(std::make_shared<Group>(peers, "world", rank, ranks));
        } catch (...) {
          errors[size_t(rank)] = std::current_exception();
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
