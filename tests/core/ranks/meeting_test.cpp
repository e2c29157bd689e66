// Ranks as threads that meet in a store, and what they say if they cannot.
#include <mutex>
#include <thread>

#include <catch2/catch.hpp>

#include <dsv3/runtime/launch.h>
#include <dsv3/runtime/rank_threads.h>
#include <dsv3/sdk/error.h>

#include "ranks/store.h"

using Catch::Matchers::Contains;
using dsv3::Error;
using dsv3::ExitCode;
using dsv3::RankContext;

namespace {

constexpr std::chrono::milliseconds kTimeout{1'500};

struct Member {
  int64_t rank, world;
  std::string version = "1.0";
};

/// Lets ranks meet in a new store, each on its own thread. Returns their errors, empty for success.
std::vector<std::string> meet(const std::vector<Member>& members) {
  int64_t port = 0;
  const auto store = dsv3::serve_store(port);
  std::vector<std::string> errors(members.size());
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < members.size(); ++i)
    threads.emplace_back([&, i] {
      RankContext context;
      context.rank = context.local_rank = members[i].rank;
      context.world = context.local_world = members[i].world;
      context.address = "127.0.0.1";
      context.port = port;
      context.external_store = true;
      try {
        dsv3::meet(context, kTimeout, members[i].version);
      } catch (const Error& error) {
        errors[i] = error.what();
      }
    });
  threads.clear();
  return errors;
}

RankContext context_of(const std::string& launcher, int64_t world, int64_t local_world) {
  RankContext context;
  context.launcher = launcher;
  context.world = world;
  context.local_world = local_world;
  return context;
}

}  // namespace

TEST_CASE("ranks meet in a store") {
  for (const std::string& error : meet({{0, 3}, {1, 3}, {2, 3}})) CHECK(error.empty());
}

TEST_CASE("every rank names the ranks that are missing") {
  for (const std::string& error : meet({{0, 4}, {2, 4}}))
    CHECK_THAT(error, Contains("waited 1 s for all 4 ranks; missing: rank 1, 3"));
}

TEST_CASE("ranks with different builds do not train together") {
  for (const std::string& error : meet({{0, 2, "1.0"}, {1, 2, "1.1"}}))
    CHECK_THAT(error, Contains("runs dsv3 1.0, but rank 1 on ") && Contains("runs dsv3 1.1"));
}

TEST_CASE("ranks that disagree on their number do not train together") {
  for (const std::string& error : meet({{0, 2}, {1, 3}}))
    CHECK_THAT(error, Contains("is one of 2 ranks, but rank 1 on ") && Contains("is one of 3"));
}

TEST_CASE("a second process with the same rank is rejected, and the first one goes ahead") {
  const std::vector<std::string> errors = meet({{0, 2}, {1, 2}, {1, 2}});
  CHECK(errors[0].empty());
  CHECK(errors[1].empty() != errors[2].empty());
  CHECK_THAT(errors[1] + errors[2], Contains("two processes are rank 1 of the run at 127.0.0.1:"));
}

TEST_CASE("the error of a rank reaches the others") {
  std::mutex mutex;
  std::vector<std::string> errors;
  const auto train = [&](const std::shared_ptr<dsv3::Communicator>& world) {
    at::Tensor sum = at::ones({3});
    world->all_reduce_sum(sum);
    if (world->rank() == 1) throw Error("cannot read shard 7", ExitCode::data);
    try {
      world->all_reduce_sum(sum);
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::peer_lost);
      const std::lock_guard lock(mutex);
      errors.push_back(error.what());
      throw;
    }
  };
  CHECK_THROWS_WITH(dsv3::on_ranks(3, train), "cannot read shard 7");
  REQUIRE(errors.size() == 2);
  for (const std::string& error : errors)
    CHECK_THAT(error, Contains(" of group 'world' failed: rank 1 on ") &&
                          Contains(" failed: cannot read shard 7"));
}

TEST_CASE("dsv3-run starts the ranks unless a launcher has") {
  using dsv3::must_launch;
  CHECK_FALSE(must_launch({}, std::nullopt, 0));
  CHECK_FALSE(must_launch({}, 1, 0));
  CHECK(must_launch({}, 2, 0));
  CHECK(must_launch({}, std::nullopt, 3));
  CHECK_FALSE(must_launch(context_of("dsv3-run", 2, 2), 2, 3));
  CHECK(must_launch(context_of("Slurm", 1, 1), 4, 0));  // a shell in an allocation
  CHECK_FALSE(must_launch(context_of("torchrun", 8, 4), 4, 0));
  CHECK_FALSE(must_launch(context_of("Slurm", 8, 4), std::nullopt, 0));
}

TEST_CASE("--num_gpus and --max_restarts must not contradict a launcher") {
  const auto error_of = [](const RankContext& context, std::optional<int64_t> ranks,
                           int64_t max_restarts) -> std::string {
    try {
      dsv3::must_launch(context, ranks, max_restarts);
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::usage);
      return error.what();
    }
    return "no error";
  };
  CHECK_THAT(error_of(context_of("torchrun", 8, 4), 8, 0),
             Contains("--num_gpus 8 contradicts torchrun, which started 4 of 8 rank(s)"));
  CHECK_THAT(error_of(context_of("torchrun", 1, 1), 2, 0), Contains("contradicts torchrun"));
  CHECK_THAT(error_of(context_of("MPI", 2, 2), 1, 0), Contains("contradicts MPI"));
  CHECK_THAT(error_of(context_of("Slurm", 2, 1), std::nullopt, 1), Contains("--max_restarts"));
}
