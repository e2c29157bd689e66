#include <array>
#include <charconv>
#include <optional>
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
};

constexpr std::array kLaunchers{
    Launcher{"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    Launcher{"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID",
             "SLURM_STEP_TASKS_PER_NODE"},
    Launcher{"MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
             "OMPI_COMM_WORLD_LOCAL_SIZE"},
    Launcher{"MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"}};

std::optional<std::string> text_of(const Environment& variables, const char* name) {
  const auto found = variables.find(name);
  return found == variables.end() ? std::nullopt : std::optional(found->second);
}

std::optional<int64_t> number_of(const Environment& variables, const char* name) {
  const auto text = text_of(variables, name);
  if (!text) return std::nullopt;
  int64_t number = 0;
  const char* const end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, number);
  // Slurm writes the tasks per node as 4(x2).
  if (error != std::errc() || (stop != end && *stop != '(') || number < 0)
    fail(std::string("environment variable ") + name + "='" + *text +
         "' is not a number; correct or unset it");
  return number;
}

int64_t required(const Environment& variables, const char* name, const char* because) {
  const auto number = number_of(variables, name);
  if (!number)
    fail(std::string("environment variable ") + name + " is not set, but " + because +
         " is; start all ranks with torchrun, srun or mpirun, or unset " + because);
  return *number;
}

/// Whether Slurm started this process as one of several tasks. In a batch script, the variables of
/// the job are set too, but those of a step are not.
bool is_used(const Launcher& launcher, const Environment& variables) {
  return variables.contains(launcher.rank) &&
         (std::string_view(launcher.name) != "Slurm" || variables.contains(launcher.world));
}

/// The first host in a list of Slurm, such as node[07-09,12],login.
std::string first_host(const std::string& list) {
  const size_t bracket = list.find('['), comma = list.find(',');
  if (comma < bracket) return list.substr(0, comma);
  if (bracket == list.npos) return list;
  const size_t end = list.find_first_of("-,]", bracket);
  const size_t close = list.find(']', bracket);
  const std::string rest = close == list.npos ? "" : list.substr(close + 1);
  return list.substr(0, bracket) + list.substr(bracket + 1, end - bracket - 1) +
         rest.substr(0, rest.find(','));
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

void set_store(RankContext& context, const Environment& variables) {
  if (context.world == 1) return;
  const auto hosts = text_of(variables, "SLURM_STEP_NODELIST");
  context.address = text_of(variables, "MASTER_ADDR").value_or(hosts ? first_host(*hosts) : "");
  if (context.address.empty())
    fail("environment variable MASTER_ADDR is not set, so the " + std::to_string(context.world) +
         " ranks cannot find each other; set it to the host of rank 0");
  const auto job = number_of(variables, "SLURM_JOB_ID");
  const auto port = number_of(variables, "MASTER_PORT");
  if (!port && !job)
    fail("environment variable MASTER_PORT is not set; set it to a port that is free on " +
         context.address);
  context.port = port ? *port : 20'000 + *job % 10'000;
  if (context.port < 1 || context.port > 65'535)
    fail("MASTER_PORT=" + std::to_string(context.port) + " is not a port; use 1 to 65535");
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
  RankContext context;
  const Launcher* used = nullptr;
  for (const Launcher& launcher : kLaunchers) {
    if (!is_used(launcher, variables)) continue;
    const int64_t rank = required(variables, launcher.rank, launcher.rank);
    const int64_t world = required(variables, launcher.world, launcher.rank);
    // torchrun may itself run under srun, once for each machine.
    if (used && world > 1 && (rank != context.rank || world != context.world) &&
        std::string_view(used->name) != "torchrun")
      fail(std::string(used->rank) + "=" + std::to_string(context.rank) + " and " + launcher.rank +
           "=" + std::to_string(rank) + " contradict each other; unset the variables of " +
           used->name + " or of " + launcher.name);
    if (used) continue;
    used = &launcher;
    context.launcher = launcher.name;
    context.rank = rank;
    context.world = world;
    context.local_rank = required(variables, launcher.local_rank, launcher.rank);
    context.local_world =
        number_of(variables, launcher.local_world).value_or(context.local_rank + 1);
    check(context, launcher);
  }
  if (used) set_store(context, variables);
  return context;
}

}  // namespace dsv3
