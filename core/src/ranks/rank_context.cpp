#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string_view>
#include <unistd.h>

#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw Error(what, ExitCode::usage);
}

/// The names of one launcher's variables.
struct Launcher {
  const char *name, *rank, *world, *local_rank, *local_world;
  const char* sign;  ///< set if this launcher started the process
};

/// The innermost launcher comes first: mpirun's daemons may be tasks of srun, one on each machine.
/// In a batch script, Slurm sets SLURM_PROCID, but no variable of a step. With Slurm's PMI plugins,
/// srun sets PMI_RANK and PMI_SIZE, but not the local variables of mpirun.
constexpr std::array kLaunchers{
    Launcher{"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK"},
    Launcher{"MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
             "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_RANK"},
    Launcher{"MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS",
             "MPI_LOCALRANKID"},
    Launcher{"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID",
             "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NUM_TASKS"}};

std::optional<std::string> text_of(const Environment& variables, const char* name) {
  const auto found = variables.find(name);
  return found == variables.end() ? std::nullopt : std::optional(found->second);
}

[[noreturn]] void fail_value(const std::string& name, const std::string& text, const char* wanted) {
  fail("environment variable " + name + "='" + text + "' is not " + wanted +
       "; correct or unset it");
}

std::optional<int64_t> parse_number(std::string_view text) {
  int64_t number = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || stop != text.data() + text.size() || number < 0) return std::nullopt;
  return number;
}

std::optional<int64_t> number_of(const Environment& variables, const char* name) {
  const auto text = text_of(variables, name);
  if (!text) return std::nullopt;
  const auto number = parse_number(*text);
  if (!number) fail_value(name, *text, "a number");
  return number;
}

int64_t required(const Environment& variables, const char* name, const char* because) {
  const auto number = number_of(variables, name);
  if (!number)
    fail(std::string("environment variable ") + name + " is not set, but " + because +
         " is; start all ranks with torchrun, srun or mpirun, or unset " + because);
  return *number;
}

/// Returns the entry for `node` of a list of Slurm such as 2(x3),1: three nodes with two tasks and
/// one node with one task.
std::optional<int64_t> tasks_on_node(std::string_view list, int64_t node) {
  while (!list.empty()) {
    const std::string_view entry = list.substr(0, list.find(','));
    list.remove_prefix(std::min(list.size(), entry.size() + 1));
    const size_t times = entry.find("(x");
    const auto tasks = parse_number(entry.substr(0, times));
    const auto nodes = times == entry.npos || !entry.ends_with(')')
                           ? std::optional<int64_t>(1)
                           : parse_number(entry.substr(times + 2, entry.size() - times - 3));
    if (!tasks || !nodes) return std::nullopt;
    if (node < *nodes) return tasks;
    node -= *nodes;
  }
  return std::nullopt;
}

int64_t local_world_of(const Environment& variables, const Launcher& launcher) {
  if (std::string_view(launcher.name) != "Slurm")
    return required(variables, launcher.local_world, launcher.rank);
  const auto tasks = text_of(variables, launcher.local_world);
  if (!tasks) return required(variables, launcher.local_world, launcher.rank);
  const auto local_world =
      tasks_on_node(*tasks, required(variables, "SLURM_NODEID", launcher.rank));
  if (!local_world)
    fail_value(launcher.local_world, *tasks, "a list of tasks for each node, such as 4(x2),1");
  return *local_world;
}

/// The first host in a list of Slurm, such as node[07-09,12],login or rack[1-2]node[1-8].
std::string first_host(std::string_view list) {
  std::string host;
  while (!list.empty() && list.front() != ',') {
    if (list.front() == '[') {
      host += list.substr(1, list.find_first_of("-,]") - 1);
      list.remove_prefix(std::min(list.find(']'), list.size() - 1));
    } else {
      host += list.front();
    }
    list.remove_prefix(1);
  }
  return host;
}

void check(const RankContext& context, const Launcher& launcher) {
  const auto numbers = [](int64_t a, int64_t b) {
    return std::to_string(a) + " of " + std::to_string(b);
  };
  if (context.rank >= context.world)
    fail(std::string(launcher.rank) + " and " + launcher.world + " say that this is rank " +
         numbers(context.rank, context.world) + "; ranks start at 0");
  if (context.local_rank >= context.local_world || context.local_world > context.world)
    fail(std::string(launcher.local_rank) + " and " + launcher.local_world +
         " say that this is local rank " + numbers(context.local_rank, context.local_world) +
         ", of a run with " + std::to_string(context.world) + " rank(s)");
}

/// Rejects RANK and WORLD_SIZE that someone exported by hand, if the ranks are really started by
/// srun or mpirun: all of them would be the same rank. torchrun itself may run under these, once on
/// each machine, and sets TORCHELASTIC_RUN_ID.
void check_others(const Environment& variables, const RankContext& context, const Launcher& used) {
  if (context.launcher != "torchrun" || variables.contains("TORCHELASTIC_RUN_ID")) return;
  for (const Launcher& other : kLaunchers) {
    if (!variables.contains(other.sign)) continue;
    const int64_t rank = required(variables, other.rank, other.sign);
    const int64_t world = required(variables, other.world, other.sign);
    if (world == 1 || (rank == context.rank && world == context.world)) continue;
    fail(std::string(used.rank) + "=" + std::to_string(context.rank) + ", " + used.world + "=" +
         std::to_string(context.world) + " and " + other.rank + "=" + std::to_string(rank) + ", " +
         other.world + "=" + std::to_string(world) + " contradict each other; unset " + used.rank +
         " and " + used.world + ", which torchrun sets, or the variables of " + other.name);
  }
}

/// The steps of a job run at the same time, so each has its own port.
std::optional<int64_t> port_of_step(const Environment& variables) {
  const auto job = number_of(variables, "SLURM_JOB_ID");
  if (!job) return std::nullopt;
  return 20'000 + (*job + number_of(variables, "SLURM_STEP_ID").value_or(0)) % 10'000;
}

void set_store(RankContext& context, const Environment& variables) {
  context.attempt = number_of(variables, "TORCHELASTIC_RESTART_COUNT").value_or(0);
  if (context.world == 1) return;
  const auto hosts = text_of(variables, "SLURM_STEP_NODELIST");
  const std::string host = context.local_world == context.world ? "127.0.0.1"
                           : hosts                              ? first_host(*hosts)
                                                                : "";
  context.address = text_of(variables, "MASTER_ADDR").value_or(host);
  if (context.address.empty())
    fail("environment variable MASTER_ADDR is not set, so the " + std::to_string(context.world) +
         " ranks cannot find each other; set it to the host of rank 0 on all ranks");
  const auto given = number_of(variables, "MASTER_PORT");
  const auto port = given ? given : port_of_step(variables);
  if (!port)
    fail(
        "environment variable MASTER_PORT is not set; set it on all ranks to a port that is free "
        "on " +
        context.address);
  if (*port < 1 || *port > 65'535)
    fail("MASTER_PORT=" + std::to_string(*port) + " is not a port; use 1 to 65535");
  context.port = *port;
  context.external_store = text_of(variables, "TORCHELASTIC_USE_AGENT_STORE") == "True";
}

}  // namespace

Environment environment() {
  Environment variables;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != text.npos) variables.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return variables;
}

RankContext rank_context(const Environment& variables) {
  // Without RANK, every process would train on its own.
  if (variables.contains("WORLD_SIZE")) required(variables, "RANK", "WORLD_SIZE");
  const auto used = std::ranges::find_if(
      kLaunchers, [&](const Launcher& launcher) { return variables.contains(launcher.sign); });
  RankContext context;
  if (used == kLaunchers.end()) return context;
  // The launcher of dsv3-run sets the variables of torchrun.
  const bool own =
      std::string_view(used->name) == "torchrun" && variables.contains("DSV3_LAUNCHER");
  context.launcher = own ? "dsv3-run" : used->name;
  context.rank = required(variables, used->rank, used->sign);
  context.world = required(variables, used->world, used->rank);
  context.local_rank = required(variables, used->local_rank, used->rank);
  context.local_world = local_world_of(variables, *used);
  check(context, *used);
  check_others(variables, context, *used);
  set_store(context, variables);
  return context;
}

}  // namespace dsv3
