#include "train/profile.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>

#include "ranks/exchange.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

constexpr int64_t kSkipped = 2, kRecorded = 3;  // steps

std::set<torch::profiler::impl::ActivityType> activities(at::Device device) {
  using torch::profiler::impl::ActivityType;
  if (device.is_cuda()) return {ActivityType::CPU, ActivityType::CUDA};
  return {ActivityType::CPU};
}

stdfs::path part_of(const stdfs::path& folder, int64_t rank) {
  return folder / ("rank-" + std::to_string(rank) + ".json");
}

/// Makes the processes and connections in a rank's events different from those of other ranks.
void rename(nlohmann::json& event, int64_t rank) {
  constexpr int64_t kPerRank = int64_t{1} << 32;
  const std::string label = "rank " + std::to_string(rank);
  if (auto pid = event.find("pid"); pid != event.end()) {
    if (pid->is_number_integer())
      *pid = pid->get<int64_t>() % kPerRank + rank * kPerRank;
    else if (pid->is_string())
      *pid = label + " " + pid->get<std::string>();
  }
  if (auto id = event.find("id"); id != event.end() && id->is_number_integer())
    *id = id->get<int64_t>() % kPerRank + rank * kPerRank;
  if (event.value("name", "") == "process_name")
    event["args"]["name"] = label + ": " + event["args"].value("name", "");
  if (event.value("name", "") == "process_sort_index") event["args"]["sort_index"] = rank;
}

/// Merges the ranks' traces and removes them.
void merge(const stdfs::path& folder, int64_t ranks) {
  nlohmann::json trace;
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const stdfs::path path = part_of(folder, rank);
    nlohmann::json part = nlohmann::json::parse(fs::read(path));
    for (nlohmann::json& event : part.at("traceEvents")) {
      rename(event, rank);
      if (rank > 0) trace["traceEvents"].push_back(std::move(event));
    }
    if (rank == 0) trace = std::move(part);
    fs::remove_all(path);
  }
  fs::write_atomically(folder / "trace.json",
                       trace.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

}  // namespace

Profile::Profile(Training& run) : run_(run) {
  const int64_t left = run.steps - run.state.step;
  first_ = run.state.step + 1 + std::clamp<int64_t>(left - 1, 0, kSkipped);
}

void Profile::step_begins() {
  if (run_.state.step + 1 != first_) return;
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO,
                                                     /*report_input_shapes=*/true);
  // Kineto reports an error for each GPU function that it does not find on a CPU.
  if (run_.device.is_cpu()) setenv("KINETO_LOG_LEVEL", "5", /*overwrite=*/0);
  torch::autograd::profiler::prepareProfiler(config, activities(run_.device));
  torch::autograd::profiler::enableProfiler(config, activities(run_.device));
  recording_ = true;
}

void Profile::step_ended(bool last) {
  if (!recording_ || (!last && run_.state.step + 1 < first_ + kRecorded)) return;
  recording_ = false;
  write();
}

void Profile::write() const {
  const stdfs::path folder = run_.folder.path() / "profile";
  const auto result = torch::autograd::profiler::disableProfiler();
  run_together(*run_.ranks.control, [&] {
    fs::make_folders(folder);
    result->save(part_of(folder, run_.ranks.control->rank()).string());
  });
  run_together(*run_.ranks.control, [&] {
    if (run_.ranks.is_first()) merge(folder, run_.ranks.size());
  });
  log::info("wrote a trace of steps " + std::to_string(first_) + " to " +
            std::to_string(run_.state.step) + " to " + (folder / "trace.json").string() +
            "; open it at ui.perfetto.dev");
}

}  // namespace dsv3
