#include <catch2/catch.hpp>

#include <dsv3/runtime/ranks.h>
#include <dsv3/sdk/error.h>

using Catch::Matchers::Contains;
using dsv3::Environment;
using dsv3::rank_context;
using dsv3::RankContext;

namespace {

Environment with(Environment variables, const Environment& changes) {
  for (const auto& [name, value] : changes) variables[name] = value;
  return variables;
}

Environment without(Environment variables, const std::string& name) {
  REQUIRE(variables.erase(name) == 1);
  return variables;
}

std::string error_of(const Environment& variables) {
  try {
    rank_context(variables);
  } catch (const dsv3::Error& error) {
    CHECK(error.code() == dsv3::ExitCode::usage);
    return error.what();
  }
  return "no error";
}

const Environment kTorchrun{{"RANK", "5"},
                            {"WORLD_SIZE", "8"},
                            {"LOCAL_RANK", "1"},
                            {"LOCAL_WORLD_SIZE", "4"},
                            {"MASTER_ADDR", "host-a"},
                            {"MASTER_PORT", "29400"},
                            {"TORCHELASTIC_RUN_ID", "none"},
                            {"TORCHELASTIC_RESTART_COUNT", "2"},
                            {"TORCHELASTIC_USE_AGENT_STORE", "True"}};

/// Task 3 of `srun -N 4 -n 5`, with two tasks on the first node.
const Environment kSlurm{{"SLURM_PROCID", "3"},
                         {"SLURM_LOCALID", "0"},
                         {"SLURM_NODEID", "2"},
                         {"SLURM_JOB_ID", "123456"},
                         {"SLURM_STEP_ID", "3"},
                         {"SLURM_STEP_NUM_TASKS", "5"},
                         {"SLURM_STEP_TASKS_PER_NODE", "2,1(x3)"},
                         {"SLURM_STEP_NODELIST", "node[07-09,12]"}};

const Environment kOpenMpi{{"OMPI_COMM_WORLD_RANK", "1"},       {"OMPI_COMM_WORLD_SIZE", "4"},
                           {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                           {"MASTER_ADDR", "host-b"},           {"MASTER_PORT", "5000"}};

const Environment kHydra{{"PMI_RANK", "1"},
                         {"PMI_SIZE", "2"},
                         {"MPI_LOCALRANKID", "1"},
                         {"MPI_LOCALNRANKS", "2"},
                         {"MASTER_PORT", "5000"}};

std::string host_of(const std::string& list) {
  return rank_context(with(kSlurm, {{"SLURM_STEP_NODELIST", list}})).address;
}

/// The ranks on the machine of local rank 0 of the node, by Slurm's list.
int64_t local_world(const std::string& tasks, const std::string& node) {
  return rank_context(with(kSlurm, {{"SLURM_STEP_NUM_TASKS", "64"},
                                    {"SLURM_STEP_TASKS_PER_NODE", tasks},
                                    {"SLURM_NODEID", node}}))
      .local_world;
}

}  // namespace

TEST_CASE("a process without a launcher's variables is the only rank") {
  const RankContext context = rank_context({{"PATH", "/usr/bin"}, {"MASTER_PORT", "1"}});
  CHECK(context.world == 1);
  CHECK(context.rank == 0);
  CHECK(context.local_world == 1);
  CHECK(context.launcher.empty());
}

TEST_CASE("the variables of torchrun are read") {
  const RankContext context = rank_context(kTorchrun);
  CHECK(context.launcher == "torchrun");
  CHECK(context.rank == 5);
  CHECK(context.world == 8);
  CHECK(context.local_rank == 1);
  CHECK(context.local_world == 4);
  CHECK(context.address == "host-a");
  CHECK(context.port == 29400);
  CHECK(context.external_store);
  CHECK(context.attempt == 2);
  const RankContext own =
      rank_context(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}}));
  CHECK_FALSE(own.external_store);
}

TEST_CASE("the variables of srun are read") {
  const RankContext context = rank_context(kSlurm);
  CHECK(context.launcher == "Slurm");
  CHECK(context.rank == 3);
  CHECK(context.world == 5);
  CHECK(context.local_rank == 0);
  CHECK(context.local_world == 1);
  CHECK(context.address == "node07");
  CHECK(context.port == 23459);
  CHECK_FALSE(context.external_store);
  CHECK(rank_context(with(kSlurm, {{"MASTER_ADDR", "10.0.0.1"}})).address == "10.0.0.1");
  CHECK(rank_context(with(kSlurm, {{"MASTER_PORT", "999"}})).port == 999);
}

TEST_CASE("the port of a step of Slurm is valid and differs from those of its neighbours") {
  const auto port = [](const char* job, const char* step) {
    return rank_context(with(kSlurm, {{"SLURM_JOB_ID", job}, {"SLURM_STEP_ID", step}})).port;
  };
  CHECK(port("4294967294", "0") < 32768);
  CHECK(port("0", "0") > 1023);
  CHECK(port("7", "0") != port("7", "1"));
}

TEST_CASE("the first host of a list of Slurm is found") {
  CHECK(host_of("login") == "login");
  CHECK(host_of("a,b") == "a");
  CHECK(host_of("node[3]") == "node3");
  CHECK(host_of("node[003-017]") == "node003");
  CHECK(host_of("node[12,14-15],other") == "node12");
  CHECK(host_of("rack[1-2]node[05-08]") == "rack1node05");
  CHECK(host_of("n[1-2]-ib,other[1-2]") == "n1-ib");
  CHECK(host_of("gpu-a,gpu-[1-2]") == "gpu-a");
  CHECK(host_of("broken[") == "broken");
}

TEST_CASE("the number of local ranks is found in Slurm's list of tasks") {
  CHECK(local_world("4", "0") == 4);
  CHECK(local_world("4(x2)", "1") == 4);
  CHECK(local_world("2,1(x3)", "0") == 2);
  CHECK(local_world("2,1(x3)", "3") == 1);
  CHECK(local_world("2(x3),1,5(x2)", "3") == 1);
  CHECK(local_world("2(x3),1,5(x2)", "5") == 5);
  for (const char* tasks : {"", "x", "2(x", "2(xb)", "2(x3", "1,,2", "4(x2)"})
    CHECK_THAT(error_of(with(kSlurm, {{"SLURM_STEP_TASKS_PER_NODE", tasks}})),
               Contains("SLURM_STEP_TASKS_PER_NODE='") && Contains("is not a list of tasks"));
}

TEST_CASE("a batch script or an allocation of Slurm without srun is a single process") {
  const Environment batch{{"SLURM_JOB_ID", "7"},  {"SLURM_PROCID", "0"},
                          {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "0"},
                          {"SLURM_NTASKS", "8"},  {"SLURM_TASKS_PER_NODE", "4(x2)"}};
  CHECK(rank_context(batch).world == 1);
  CHECK(rank_context(batch).launcher.empty());
}

TEST_CASE("one task of srun needs no port") {
  const RankContext context = rank_context({{"SLURM_PROCID", "0"},
                                            {"SLURM_LOCALID", "0"},
                                            {"SLURM_NODEID", "0"},
                                            {"SLURM_STEP_NUM_TASKS", "1"},
                                            {"SLURM_STEP_TASKS_PER_NODE", "1"}});
  CHECK(context.world == 1);
}

TEST_CASE("the variables of mpirun are read") {
  const RankContext open_mpi = rank_context(kOpenMpi);
  CHECK(open_mpi.launcher == "MPI");
  CHECK(open_mpi.rank == 1);
  CHECK(open_mpi.world == 4);
  CHECK(open_mpi.local_rank == 1);
  CHECK(open_mpi.local_world == 2);
  CHECK(open_mpi.address == "host-b");
  const RankContext hydra = rank_context(kHydra);
  CHECK(hydra.launcher == "MPI");
  CHECK(hydra.rank == 1);
  CHECK(hydra.world == 2);
  CHECK(hydra.local_rank == 1);
  CHECK(hydra.local_world == 2);
  CHECK(hydra.address == "127.0.0.1");  // all ranks are on one machine
}

TEST_CASE("the innermost launcher counts") {
  // mpirun starts one daemon on each node, with srun.
  Environment daemon = kSlurm;
  daemon["SLURM_STEP_NUM_TASKS"] = "4";
  CHECK(rank_context(with(daemon, kOpenMpi)).launcher == "MPI");
  CHECK(rank_context(with(daemon, kHydra)).rank == 1);
  // torchrun runs once on each node.
  CHECK(rank_context(with(kSlurm, kTorchrun)).rank == 5);
  CHECK(rank_context(with(kOpenMpi, kTorchrun)).rank == 5);
  // srun --mpi=pmi2 sets two variables of MPICH.
  CHECK(rank_context(with(kSlurm, {{"PMI_RANK", "3"}, {"PMI_SIZE", "5"}})).launcher == "Slurm");
}

TEST_CASE("exported variables of torchrun must agree with srun and mpirun") {
  const Environment exported = without(
      without(without(with(kTorchrun, {{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "0"}}),
                      "TORCHELASTIC_RUN_ID"),
              "LOCAL_WORLD_SIZE"),
      "MASTER_PORT");
  const Environment one = with(exported, {{"LOCAL_WORLD_SIZE", "1"}});
  CHECK(rank_context(one).world == 1);
  CHECK_THAT(error_of(with(kSlurm, one)),
             Contains("RANK=0, WORLD_SIZE=1 and SLURM_PROCID=3, SLURM_STEP_NUM_TASKS=5 contradict "
                      "each other"));
  CHECK_THAT(error_of(with(kOpenMpi, one)), Contains("OMPI_COMM_WORLD_RANK=1"));
  CHECK_THAT(error_of(with(kHydra, one)), Contains("PMI_RANK=1"));
  // A batch script may set them to what mpirun says.
  const Environment equal =
      with(kOpenMpi,
           {{"RANK", "1"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}});
  CHECK(rank_context(equal).rank == 1);
}

TEST_CASE("missing variables are named") {
  for (const char* name : {"WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"})
    CHECK_THAT(error_of(without(kTorchrun, name)),
               Contains(std::string("environment variable ") + name + " is not set, but RANK is"));
  CHECK_THAT(error_of(without(kTorchrun, "RANK")), Contains("RANK is not set, but WORLD_SIZE is"));
  CHECK_THAT(error_of(without(kTorchrun, "MASTER_ADDR")),
             Contains("MASTER_ADDR is not set, so the 8 ranks cannot find each other"));
  CHECK_THAT(error_of(without(kTorchrun, "MASTER_PORT")), Contains("free on host-a"));
  for (const char* name :
       {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE"})
    CHECK_THAT(error_of(without(kSlurm, name)), Contains(std::string(name) + " is not set"));
  for (const char* name :
       {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"})
    CHECK_THAT(error_of(without(kOpenMpi, name)), Contains(std::string(name) + " is not set"));
  for (const char* name : {"PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "MASTER_PORT"})
    CHECK_THAT(error_of(without(kHydra, name)), Contains(std::string(name) + " is not set"));
}

TEST_CASE("impossible values are rejected") {
  for (const char* value : {"", "x", "-1", "1.5", "3 ", "99999999999999999999"})
    CHECK_THAT(error_of(with(kTorchrun, {{"RANK", value}})),
               Contains("RANK='" + std::string(value) + "' is not a number"));
  CHECK_THAT(error_of(with(kTorchrun, {{"RANK", "8"}})), Contains("rank 8 of 8"));
  CHECK_THAT(error_of(with(kTorchrun, {{"WORLD_SIZE", "0"}})), Contains("rank 5 of 0"));
  CHECK_THAT(error_of(with(kTorchrun, {{"LOCAL_RANK", "4"}})), Contains("local rank 4 of 4"));
  CHECK_THAT(error_of(with(kTorchrun, {{"LOCAL_WORLD_SIZE", "9"}})), Contains("local rank 1 of 9"));
  for (const char* port : {"0", "65536"})
    CHECK_THAT(error_of(with(kTorchrun, {{"MASTER_PORT", port}})), Contains("is not a port"));
}
