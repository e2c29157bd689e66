#include "ranks/store.h"

#include <arpa/inet.h>
#include <cstring>
#include <fcntl.h>
#include <future>
#include <map>
#include <netdb.h>
#include <optional>
#include <poll.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

#include <ATen/Version.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/version.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/sdk/version.h>
#include <dsv3/support/json.h>

#include "support/host.h"

namespace dsv3 {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kPoll{20};
constexpr milliseconds kFailureWait{1'000};  // for what other ranks publish
constexpr milliseconds kFailureLimit{3'000};
constexpr std::chrono::seconds kNotice{10};  // between notices that ranks are missing
constexpr const char* kFailure = "dsv3/failure";
constexpr const char* kFailureReaders = "dsv3/failure/readers";

std::mutex quiet_mutex;
int quiet_users = 0;
std::optional<int> previous_level;

std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

std::string key_of(const char* what, int64_t rank) {
  return std::string("dsv3/") + what + "/" + std::to_string(rank);
}

std::vector<uint8_t> bytes_of(const std::string& text) {
  return {text.begin(), text.end()};
}

std::string text_in(c10d::Store& store, const std::string& key) {
  const std::vector<uint8_t> bytes = store.get(key);
  return {bytes.begin(), bytes.end()};
}

/// Calls `f` on another thread and returns its result, or nullopt if that takes longer than
/// `limit`: a client of the store waits forever for a server whose process is stopped.
template <class T>
std::optional<T> within(milliseconds limit, std::function<T()> f) {
  const QuietLibTorch quiet;
  auto task = std::make_shared<std::packaged_task<T()>>(std::move(f));
  std::future<T> result = task->get_future();
  std::thread([task] { (*task)(); }).detach();
  if (result.wait_for(limit) != std::future_status::ready) return std::nullopt;
  return result.get();
}

/// A socket that is closed with this object.
struct Socket {
  int number;
  explicit Socket(int descriptor) : number(descriptor) {}
  ~Socket() {
    if (number >= 0) ::close(number);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
};

std::string text_of(const sockaddr_storage& address, socklen_t size) {
  char text[NI_MAXHOST] = "";
  ::getnameinfo(reinterpret_cast<const sockaddr*>(&address), size, text, sizeof text, nullptr, 0,
                NI_NUMERICHOST);
  return text;
}

/// The two ends of a connection.
struct Route {
  std::string own, store;
};

/// Connects to one of the addresses of a host. On failure, returns nullopt and sets `error`.
std::optional<Route> try_route(const addrinfo& target, milliseconds limit, std::string& error) {
  const Socket socket(
      ::socket(target.ai_family, target.ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  int code = 0;
  if (::connect(socket.number, target.ai_addr, target.ai_addrlen) != 0) {
    code = errno;
    pollfd ready{socket.number, POLLOUT, 0};
    socklen_t size = sizeof code;
    if (code == EINPROGRESS && ::poll(&ready, 1, int(limit.count())) == 1)
      ::getsockopt(socket.number, SOL_SOCKET, SO_ERROR, &code, &size);
    else if (code == EINPROGRESS)
      code = ETIMEDOUT;
  }
  error = std::strerror(code);
  if (code != 0) return std::nullopt;
  sockaddr_storage own{}, store{};
  socklen_t own_size = sizeof own, store_size = sizeof store;
  ::getsockname(socket.number, reinterpret_cast<sockaddr*>(&own), &own_size);
  ::getpeername(socket.number, reinterpret_cast<sockaddr*>(&store), &store_size);
  return Route{text_of(own, own_size), text_of(store, store_size)};
}

std::string place_of(const RankContext& context) {
  return context.address + ":" + std::to_string(context.port);
}

/// Waits until a process listens at the store's address. LibTorch waits too, but with a warning a
/// second and longer than its time-out.
Route wait_for_store(const RankContext& context, Clock::time_point deadline) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  std::string error;
  do {
    addrinfo* found = nullptr;
    const int code = ::getaddrinfo(context.address.c_str(), std::to_string(context.port).c_str(),
                                   &hints, &found);
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> targets(found, freeaddrinfo);
    if (code != 0) error = ::gai_strerror(code);
    for (const addrinfo* target = targets.get(); target; target = target->ai_next)
      if (const auto route = try_route(*target, milliseconds(1'000), error)) return *route;
    std::this_thread::sleep_for(10 * kPoll);
  } while (Clock::now() < deadline);
  throw Error("rank " + std::to_string(context.rank) + " on " + host_name() + " cannot reach " +
                  (context.external_store ? "the launcher" : "rank 0") + " at " +
                  place_of(context) + " (MASTER_ADDR, MASTER_PORT): " + error,
              ExitCode::peer_lost);
}

using StorePointer = c10::intrusive_ptr<c10d::Store>;

StorePointer connect_store(const RankContext& context, milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = uint16_t(context.port);
  options.isServer = context.rank == 0 && !context.external_store;
  options.numWorkers = size_t(context.world);
  options.waitWorkers = false;
  options.timeout = timeout;
  return c10::make_intrusive<c10d::TCPStore>(context.address, options);
}

/// The ranks before a restart may have left keys in a store that the launcher keeps.
std::string prefix_of(const RankContext& context) {
  return "attempt " + std::to_string(context.attempt);
}

StorePointer open_store(const RankContext& context, milliseconds timeout, Route& route) {
  const Clock::time_point deadline = Clock::now() + timeout;
  const bool is_server = context.rank == 0 && !context.external_store;
  if (!is_server) route = wait_for_store(context, deadline);
  std::string error = is_server ? "" : "it answers, but is not the store of a run";
  try {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now());
    const auto store =
        within<StorePointer>(std::max(left, milliseconds(1'000)),
                             [context, timeout] { return connect_store(context, timeout); });
    if (store) {
      if (is_server) route = wait_for_store(context, deadline);
      return c10::make_intrusive<c10d::PrefixStore>(prefix_of(context), *store);
    }
  } catch (const Error&) {
    throw;
  } catch (const std::exception& exception) {
    error = first_line(exception.what());
  }
  if (is_server && error.find("EADDRINUSE") != error.npos)
    error = "another program, or another process that is rank 0, uses it";
  if (is_server && error.find("uses it") == error.npos)
    throw Error("rank 0 cannot reach itself at " + place_of(context) +
                    " (MASTER_ADDR, MASTER_PORT)" + (error.empty() ? "" : ": " + error) +
                    "; set MASTER_ADDR to a name or address of this machine, " + host_name(),
                ExitCode::usage);
  if (is_server)
    throw Error("rank 0 cannot listen on port " + std::to_string(context.port) + ": " + error +
                    "; set MASTER_PORT to a free port",
                ExitCode::usage);
  throw Error("rank " + std::to_string(context.rank) + " on " + host_name() + " cannot use " +
                  place_of(context) + " (MASTER_ADDR, MASTER_PORT): " + error,
              ExitCode::peer_lost);
}

/// Writes why this rank ends, for the others. Never throws.
void publish(StorePointer store, const std::string& text, bool keeps_store,
             int64_t readers) noexcept {
  try {
    within<bool>(kFailureLimit, [=] {
      store->compareSet(kFailure, {}, bytes_of(text));
      // The store ends with this process, so wait until the others have read it.
      const Clock::time_point deadline = Clock::now() + 2 * kFailureWait;
      while (keeps_store && Clock::now() < deadline && store->add(kFailureReaders, 0) < readers)
        std::this_thread::sleep_for(kPoll);
      return true;
    });
  } catch (...) {  // then the others report a lost peer
  }
}

/// What another rank has published.
std::string read_failure(c10d::Store& store) {
  store.add(kFailureReaders, 1);
  return text_in(store, kFailure);
}

/// How a rank introduces itself to the others.
struct Introduction {
  std::string host, version, cpu;
  int64_t world = 0;
  Route route;
  bool checks = checks_operations();
};

std::string encoded(const Introduction& rank) {
  return Json{{"host", rank.host},    {"version", rank.version},   {"cpu", rank.cpu},
              {"world", rank.world},  {"address", rank.route.own}, {"store", rank.route.store},
              {"checks", rank.checks}}
      .dump();
}

Introduction decoded(const std::string& text) {
  const Json json = Json::parse(text);
  return {json.at("host"),
          json.at("version"),
          json.at("cpu"),
          json.at("world"),
          Route{json.at("address"), json.at("store")},
          json.at("checks")};
}

std::string checks_text(bool checks) {
  return checks ? "compares operations" : "does not compare operations";
}

using Introductions = std::map<int64_t, Introduction>;  // of the ranks that are present

/// Throws if a rank contradicts the first one.
void compare(const Introductions& ranks) {
  if (ranks.empty()) return;
  const auto& [first_index, first] = *ranks.begin();
  for (const auto& [index, rank] : ranks) {
    const auto fail = [&](const std::string& a, const std::string& b, const char* advice) {
      throw Error("rank " + std::to_string(first_index) + " on " + first.host + " " + a +
                      ", but rank " + std::to_string(index) + " on " + rank.host + " " + b + "; " +
                      advice,
                  ExitCode::usage);
    };
    if (rank.version != first.version)
      fail("runs dsv3 " + first.version, "runs dsv3 " + rank.version,
           "install the same build on all hosts");
    if (rank.world != first.world)
      fail("is one of " + std::to_string(first.world) + " ranks",
           "is one of " + std::to_string(rank.world), "set the same WORLD_SIZE for all ranks");
    if (rank.checks != first.checks)
      fail(checks_text(first.checks), checks_text(rank.checks),
           "set DSV3_CHECK_COLLECTIVES on all ranks, or on none");
  }
}

/// Sums depend on the vector instructions of a CPU, so results then depend on which rank runs
/// where.
void warn_if_cpus_differ(const Introductions& ranks) {
  const Introduction& first = ranks.at(0);
  for (const auto& [index, rank] : ranks) {
    if (rank.cpu == first.cpu) continue;
    log::warning("rank 0 on " + first.host + " uses the CPU capability " + first.cpu + ", rank " +
                 std::to_string(index) + " on " + rank.host + " " + rank.cpu +
                 ": the same run on other machines may give other bits; set "
                 "ATEN_CPU_CAPABILITY=avx2 on all ranks to avoid this");
    return;
  }
}

/// Waits for the introductions of all ranks.
Introductions wait_for_ranks(c10d::Store& store, const RankContext& context, milliseconds timeout) {
  std::vector<std::string> keys;
  for (int64_t rank = 0; rank < context.world; ++rank) keys.push_back(key_of("rank", rank));
  const auto present = [&] {
    Introductions ranks;
    for (int64_t rank = 0; rank < context.world; ++rank)
      if (const std::string& key = keys[size_t(rank)]; store.check({key}))
        ranks[rank] = decoded(text_in(store, key));
    return ranks;
  };
  const auto missing = [&] {
    std::string names;
    const Introductions ranks = present();
    for (int64_t rank = 0; rank < context.world; ++rank)
      if (!ranks.contains(rank)) names += (names.empty() ? "" : ", ") + std::to_string(rank);
    return "rank " + names;
  };
  const Clock::time_point deadline = Clock::now() + timeout;
  Clock::time_point next_notice = Clock::now() + kNotice;
  // Not store.wait(), which prints a warning when its time is over.
  while (!store.check(keys)) {
    if (store.check({kFailure})) {
      compare(present());  // this rank may be at fault too
      throw Error(read_failure(store), ExitCode::peer_lost);
    }
    if (Clock::now() > deadline)
      throw Error("rank " + std::to_string(context.rank) + " on " + host_name() + " waited " +
                      std::to_string(timeout.count() / 1000) + " s for all " +
                      std::to_string(context.world) + " ranks; missing: " + missing(),
                  ExitCode::peer_lost);
    if (context.rank == 0 && Clock::now() > next_notice) {
      log::info("waiting for " + missing() + " of " + std::to_string(context.world) + " ranks");
      next_notice += kNotice;
    }
    std::this_thread::sleep_for(kPoll);
  }
  return present();
}

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address == "::1";
}

/// The host name of the machine with the store may stand for its loopback address there, so its
/// ranks take the address that the others have used.
std::string address_of(const Introductions& ranks, const RankContext& context) {
  const std::string& own = ranks.at(context.rank).route.own;
  if (context.local_world == context.world) return is_loopback(own) ? own : "127.0.0.1";
  if (!is_loopback(own)) return own;
  for (const auto& [index, rank] : ranks)
    if (!is_loopback(rank.route.store)) return rank.route.store;
  return own;
}

}  // namespace

QuietLibTorch::QuietLibTorch() {
  const std::lock_guard lock(quiet_mutex);
  if (quiet_users++ > 0 || std::getenv("TORCH_CPP_LOG_LEVEL")) return;
  previous_level = std::exchange(FLAGS_caffe2_log_level, 3);  // 3 = fatal errors
}

QuietLibTorch::~QuietLibTorch() {
  const std::lock_guard lock(quiet_mutex);
  if (--quiet_users == 0 && previous_level) FLAGS_caffe2_log_level = *previous_level;
}

std::string Peers::name_of(int64_t rank) const {
  return "rank " + std::to_string(rank) + " on " + hosts[size_t(rank)];
}

bool checks_operations() {
#ifdef NDEBUG
  static const bool checks = std::getenv("DSV3_CHECK_COLLECTIVES") != nullptr;
  return checks;
#else
  return true;
#endif
}

std::string version_of_ranks() {
  return DSV3_SDK_VERSION " (SDK " DSV3_SDK_HEADERS ", LibTorch " TORCH_VERSION ")";
}

namespace {

/// LibTorch would try to connect for minutes if the loopback interface is down.
void require_loopback(int64_t port) {
  RankContext self;
  self.address = "127.0.0.1";
  self.port = port;
  self.external_store = true;
  wait_for_store(self, Clock::now());
}

}  // namespace

std::shared_ptr<void> serve_store(int64_t& port) {
  const QuietLibTorch quiet;
  // LibTorch itself would listen on all interfaces.
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (listener < 0 || ::bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
      ::listen(listener, SOMAXCONN) != 0)
    throw Error(std::string("cannot open a port on 127.0.0.1 for the ranks: ") +
                std::strerror(errno) +
                "; the network interface lo must be up and have this address");
  port = ntohs(address.sin_port);
  require_loopback(port);
  c10d::TCPStoreOptions options;
  options.port = uint16_t(port);
  options.isServer = true;
  options.waitWorkers = false;
  options.masterListenFd = listener;  // the store closes it
  return std::make_shared<c10::intrusive_ptr<c10d::TCPStore>>(
      c10::make_intrusive<c10d::TCPStore>("127.0.0.1", options));
}

std::shared_ptr<const Peers> meet(const RankContext& context, milliseconds timeout,
                                  const std::string& version) {
  const QuietLibTorch quiet;
  auto peers = std::make_shared<Peers>();
  Introduction own{.host = host_name(),
                   .version = version,
                   .cpu = at::get_cpu_capability(),
                   .world = context.world,
                   .route = {}};
  peers->store = open_store(context, timeout, own.route);
  if (peers->store->add(key_of("count", context.rank), 1) > 1)
    throw Error("two processes are rank " + std::to_string(context.rank) + " of the run at " +
                    place_of(context) +
                    "; stop the other run, or set another MASTER_PORT for this one",
                ExitCode::usage);
  peers->store->set(key_of("rank", context.rank), bytes_of(encoded(own)));
  peers->keeps_store = context.rank == 0 && !context.external_store;
  Introductions ranks;
  try {
    ranks = wait_for_ranks(*peers->store, context, timeout);
    compare(ranks);
  } catch (const Error& error) {
    publish(peers->store, error.what(), peers->keeps_store, context.world - 1);
    throw;
  } catch (const std::exception& error) {
    throw Error(
        "rank " + std::to_string(context.rank) + " on " + own.host + " lost its connection to " +
            (context.external_store ? "the launcher" : "rank 0") + " at " + place_of(context) +
            " while it waited for the other ranks (" + first_line(error.what()) + ")",
        ExitCode::peer_lost);
  }
  if (context.rank == 0) warn_if_cpus_differ(ranks);
  for (const auto& [index, rank] : ranks) peers->hosts.push_back(rank.host);
  peers->timeout = timeout;
  peers->rank = context.rank;
  peers->address = address_of(ranks, context);
  peers->external_store = context.external_store;
  return peers;
}

void publish_failure(const std::shared_ptr<const Peers>& peers, const std::string& text) noexcept {
  publish(peers->store, peers->name_of(peers->rank) + " failed: " + text, peers->keeps_store,
          int64_t(peers->hosts.size()) - 1);
}

std::string failure_of_peers(const std::shared_ptr<const Peers>& peers) {
  const auto find = [peers]() -> std::string {
    c10d::Store& store = *peers->store;
    std::vector<int64_t> silent;
    store.set(key_of("lost", peers->rank), bytes_of("1"));
    const Clock::time_point deadline = Clock::now() + kFailureWait;
    do {
      if (store.check({kFailure})) return read_failure(store);
      silent.clear();
      for (int64_t rank = 0; rank < int64_t(peers->hosts.size()); ++rank)
        if (!store.check({key_of("lost", rank)})) silent.push_back(rank);
      std::this_thread::sleep_for(kPoll);
    } while (!silent.empty() && Clock::now() < deadline);
    std::string names;
    for (const int64_t rank : silent) names += (names.empty() ? "" : ", ") + peers->name_of(rank);
    return names.empty() ? "" : names + " ended or does not respond";
  };
  try {
    if (const auto text = within<std::string>(kFailureLimit, find)) return *text;
  } catch (const std::exception&) {  // the store is away
  }
  if (peers->external_store) return "the launcher ended or does not respond";
  return peers->rank == 0 ? "" : peers->name_of(0) + " ended or does not respond";
}

}  // namespace dsv3
