// Which rank of a run this process is, and how it finds the others.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include <dsv3/sdk/communicator.h>

namespace dsv3 {

/// This process among the ranks of a run.
struct RankContext {
  int64_t rank = 0, world = 1;
  int64_t local_rank = 0, local_world = 1;  ///< among the ranks of this machine
  std::string address;                      ///< host on which rank 0 keeps the key-value store
  int64_t port = 0;
  bool external_store = false;  ///< the launcher keeps the store, so rank 0 does not
  int64_t attempt = 0;          ///< how often the launcher has restarted the ranks
  std::string launcher;         ///< "torchrun", "Slurm", "MPI", "dsv3-run" (see launch.h) or ""
};

using Environment = std::map<std::string, std::string>;

/// This process's environment variables.
Environment environment();

/// Reads the variables of torchrun (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR,
/// MASTER_PORT; launch() sets them too), of Open MPI's, MPICH's or Intel MPI's mpirun, or of
/// Slurm's srun. A batch script of Slurm without srun is a single process. Throws dsv3::Error
/// (ExitCode::usage) if they are incomplete or contradict each other.
RankContext rank_context(const Environment& variables);

struct Peers;

/// The connected ranks of a run.
struct Ranks {
  /// For texts, decisions and counts. Its tensors are in host memory, so it never waits for a GPU.
  std::shared_ptr<Communicator> control = local_communicator();
  /// For tensors on the device; on a CPU the same as `control`.
  std::shared_ptr<Communicator> world = control;
  /// How the ranks tell each other why they fail; null for a single rank.
  std::shared_ptr<const Peers> peers;
  int64_t size() const { return control->size(); }
  /// Whether this is rank 0, which alone writes the run folder.
  bool is_first() const { return control->rank() == 0; }
};

/// Waits for all ranks and connects them, with Gloo on a CPU. Throws dsv3::Error: with
/// ExitCode::usage if two processes have the same rank, run different versions of dsv3 or disagree
/// on their number, or if the port is taken; with ExitCode::peer_lost if ranks are missing after
/// `timeout` seconds, which is also the limit for each later operation.
///
/// With the environment variable DSV3_CHECK_COLLECTIVES, and in debug builds, the ranks compare
/// each operation before it starts, and throw on all ranks if they disagree.
Ranks connect(const RankContext& context, double timeout);

/// Checks that `ranks` ranks can be connected for tensors on `device`, and loads NCCL if they need
/// it. Throws dsv3::Error: with ExitCode::usage if the environment variable DSV3_RANKS is invalid,
/// with ExitCode::data if NCCL cannot be loaded.
void require_device_ranks(at::Device device, int64_t ranks);

/// Connects the ranks for tensors on `device` and sets `ranks.world`. Several ranks on GPUs use
/// NCCL. With DSV3_RANKS=gloo, they copy tensors through host memory instead; with DSV3_RANKS=nccl,
/// a single rank uses NCCL too. Call it on all ranks, after device_of(). Throws like
/// require_device_ranks(), and with ExitCode::peer_lost if a rank is lost.
void connect_device(Ranks& ranks, at::Device device);

/// Returns a function for LayerContext::rank_group. It creates each group once, so layers share it.
std::function<std::shared_ptr<Communicator>(int64_t size)> rank_groups(
    std::shared_ptr<Communicator> world);

/// Sends the other ranks the exception that is being handled, so that their errors name the
/// cause. Call it in the catch block of a rank that ends, before `ranks` is destroyed. Says nothing
/// about lost peers. Best effort: returns within 3 s.
void publish_failure(const Ranks& ranks) noexcept;

/// Returns a communicator for rank 0 of `size` ranks that do not exist, as if their tensors were
/// equal to this rank's, to estimate what a run needs.
std::shared_ptr<Communicator> planned_communicator(int64_t size, at::Device device = at::kCPU);

}  // namespace dsv3
