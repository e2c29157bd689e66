// Ranks that sum numbers, and fail when asked to.
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>
#include <unistd.h>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <dsv3/runtime/launch.h>
#include <dsv3/sdk/error.h>

#include "common/command_line.h"
#include "common/standard_streams.h"
#include "ranks/exchange.h"
#include "train/signals.h"

namespace {

struct Options {
  std::optional<int64_t> num_gpus;
  int64_t max_restarts = 0, steps = 3, failing_rank = -1, code = 1;
  double timeout = 20;
  std::string how, folder;
  bool every_time = false;
};

void write(const Options& options, const std::string& file, const std::string& text) {
  if (!options.folder.empty())
    std::ofstream(std::filesystem::path(options.folder) / file, std::ios::app) << text << '\n';
}

/// Makes this rank fail in the requested way.
void fail(const Options& options, dsv3::Communicator& world) {
  if (options.how == "throw")
    throw dsv3::Error("cannot read shard 7", dsv3::ExitCode(options.code));
  if (options.how == "exit") ::_exit(int(options.code));
  if (options.how == "kill") ::kill(::getpid(), SIGKILL);
  if (options.how == "stop") ::kill(::getpid(), SIGSTOP);
  at::Tensor tensor = at::zeros({7});
  if (options.how == "size") world.broadcast(tensor, 0);
  if (options.how == "operation") world.all_reduce_sum(tensor);
  if (options.how == "parts") {
    at::Tensor output = at::zeros({2 * world.size()});
    const std::vector<int64_t> sizes(size_t(world.size()), 2);
    world.start_all_to_all(output, output.clone(), sizes, sizes)->wait();
  }
}

/// What the other ranks do while one of them disagrees.
void agree(const Options& options, dsv3::Communicator& world) {
  at::Tensor tensor = at::zeros({6});
  if (options.how == "size" || options.how == "operation") world.broadcast(tensor, 0);
  if (options.how != "parts") return;
  at::Tensor output = at::zeros({3 * world.size()});
  const std::vector<int64_t> sizes(size_t(world.size()), 3);
  world.start_all_to_all(output, output.clone(), sizes, sizes)->wait();
}

int train(const Options& options, dsv3::Communicator& world, bool fails) {
  for (int64_t step = 0; step < options.steps; ++step) {
    at::Tensor sum = at::full({1000}, double(world.rank() + 1));
    world.all_reduce_sum(sum);
    if (sum.min().item<double>() * 2 != double(world.size() * (world.size() + 1)))
      throw dsv3::Error("the sum is wrong");
    if (dsv3::is_true_on_any(world, dsv3::stop_requested())) {
      write(options, "stopped", std::to_string(world.rank()));
      int64_t code = dsv3::requested_exit_code();
      at::Tensor codes = at::full({1}, code, at::kLong);
      world.all_reduce_max(codes);
      return int(codes.item<int64_t>());
    }
    if (step == 1 && fails && world.rank() == options.failing_rank) fail(options, world);
    if (step == 1 && fails && world.rank() != options.failing_rank) agree(options, world);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return 0;
}

Options parse(int argc, char** argv) {
  CLI::App app("Sum numbers on many ranks", "rank_program");
  Options o;
  app.add_option("--num_gpus", o.num_gpus);
  app.add_option("--max_restarts", o.max_restarts);
  app.add_option("--steps", o.steps);
  app.add_option("--timeout", o.timeout);
  app.add_option("--rank", o.failing_rank, "The rank that fails");
  app.add_option("--how", o.how, "throw, exit, kill, stop, size, operation or parts");
  app.add_option("--code", o.code, "Exit code of throw and exit");
  app.add_option("--folder", o.folder, "Where ranks write their process ids");
  app.add_flag("--every-time", o.every_time, "Fail after a restart too");
  parse_command_line(app, argc, argv);
  return o;
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const dsv3::RankContext context = dsv3::rank_context(dsv3::environment());
  if (dsv3::must_launch(context, options.num_gpus, options.max_restarts))
    return dsv3::launch({{argv, argv + argc}, options.num_gpus.value_or(1), options.max_restarts});
  at::set_num_threads(1);
  dsv3::StopSignals signals;
  signals.save_first();
  write(options, "pids", std::to_string(::getpid()));
  write(options, "resumed", dsv3::announced_run());
  dsv3::announce_run("run-1");
  const dsv3::Ranks ranks = dsv3::connect(context, options.timeout);
  write(options, "training", std::to_string(context.rank));
  const bool fails = options.every_time || context.attempt == 0;
  try {
    const int code = train(options, *ranks.world, fails);
    write(options, "ended", std::to_string(context.rank) + " " + std::to_string(code));
    if (context.rank == 0) std::cout << "sums are right on " << context.world << " ranks\n";
    return code;
  } catch (...) {
    publish_failure(ranks);
    throw;
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_program(argc, argv, run);
}
