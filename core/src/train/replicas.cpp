#include "train/replicas.h"

#include <ATen/ATen.h>

#include "ranks/exchange.h"
#include "support/host.h"

namespace dsv3 {
namespace {

/// Returns the rank whose value differs from those of most ranks in `group`; nullopt if all are
/// equal. `values` is int64 [ranks]. Of two different values that are equally frequent, that of the
/// higher rank counts as different.
std::optional<int64_t> odd_rank(const at::Tensor& values, const std::vector<int64_t>& group) {
  const auto value = [&](int64_t rank) { return values[rank].item<int64_t>(); };
  const auto frequency = [&](int64_t rank) {
    return std::ranges::count_if(group, [&](int64_t other) { return value(other) == value(rank); });
  };
  const int64_t usual = *std::ranges::max_element(group, {}, frequency);
  const auto odd =
      std::ranges::find_if(group, [&](int64_t rank) { return value(rank) != value(usual); });
  return odd == group.end() ? std::nullopt : std::optional(*odd);
}

/// Called on all ranks, because all have the same checksums.
[[noreturn]] void fail(const Training& run, const std::string& parameter, int64_t odd) {
  const std::vector<std::string> hosts = gather_texts(*run.ranks.control, host_name());
  throw Error(
      c10::str("the values of ", parameter, " on rank ", odd, " (", hosts[size_t(odd)],
               ") differ from their copies on other ranks, although all applied the same updates: "
               "the memory or processor of that machine may be faulty, or a plugin does not "
               "compute alike on all ranks. Checkpoints after step ",
               run.state.step - kCompareReplicas,
               " may contain wrong values; resume from an earlier one"),
      ExitCode::failed);
}

}  // namespace

void compare_replicas(Training& run) {
  if (run.ranks.size() == 1) return;
  const at::Tensor own = run.model->checksums().cpu();
  at::Tensor all = at::empty({run.ranks.size(), own.numel()}, at::kLong);
  run.ranks.control->start_all_gather(all.view(-1), own)->wait();
  const std::vector<Parameter>& parameters = run.model->store().parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    // Ranks with equal numbers modulo the number of slices hold copies of the same slice.
    const int64_t slices = parameters[i].spec.shards;
    for (int64_t slice = 0; slice < slices; ++slice) {
      std::vector<int64_t> group;
      for (int64_t rank = slice; rank < run.ranks.size(); rank += slices) group.push_back(rank);
      if (const auto odd = odd_rank(all.select(1, int64_t(i)), group))
        fail(run, parameters[i].name, *odd);
    }
  }
}

}  // namespace dsv3
