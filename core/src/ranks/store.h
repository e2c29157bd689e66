// The key-value store in which ranks find each other, and say why they fail.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <dsv3/runtime/ranks.h>

namespace dsv3 {

/// While this object exists, on any thread, LibTorch prints no warnings, unless the user has set
/// TORCH_CPP_LOG_LEVEL. c10d prints one, with C++ frames, for each error that it throws.
class QuietLibTorch {
 public:
  QuietLibTorch();
  ~QuietLibTorch();
  QuietLibTorch(const QuietLibTorch&) = delete;
  QuietLibTorch& operator=(const QuietLibTorch&) = delete;
};

/// What a process knows about the ranks of its run.
struct Peers {
  c10::intrusive_ptr<c10d::Store> store;
  std::chrono::milliseconds timeout{};
  std::vector<std::string> hosts;  ///< of each rank
  int64_t rank = 0;
  std::string address;          ///< at which the other ranks reach this one
  bool keeps_store = false;     ///< the store ends with this process
  bool external_store = false;  ///< the store ends with the launcher

  /// "rank 1 on host-b".
  std::string name_of(int64_t rank) const;
};

/// Starts a store that listens on this machine only, and sets its port. It ends with the object.
std::shared_ptr<void> serve_store(int64_t& port);

/// Waits until all ranks use the store. Throws dsv3::Error that names the ranks which are missing,
/// are there twice, or run another `version` of dsv3.
std::shared_ptr<const Peers> meet(const RankContext& context, std::chrono::milliseconds timeout,
                                  const std::string& version);

/// This version of dsv3 and LibTorch.
std::string version_of_ranks();

/// Writes in the store why this rank fails. Best effort: never throws, and returns within 3 s.
void publish_failure(const std::shared_ptr<const Peers>& peers, const std::string& text) noexcept;

/// Why an operation with other ranks failed: what a rank has published, or else which ranks do not
/// fail like this one; empty if neither is known. Returns within 3 s.
std::string failure_of_peers(const std::shared_ptr<const Peers>& peers);

/// Whether every operation is compared between the ranks before it starts. Gloo aborts the process
/// if sizes differ, and adds up the wrong numbers if operations of equal size are swapped.
bool checks_operations();

}  // namespace dsv3
