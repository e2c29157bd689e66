#include "ranks/recorded_metrics.h"

#include <limits>
#include <sstream>

#include <ATen/ATen.h>

#include "ranks/exchange.h"

namespace dsv3 {
namespace {

using Entries = std::map<std::string, MetricSink::Entry>;

/// Adds entries for metrics that only other ranks have recorded.
void agree_on_names(Entries& entries, Communicator& control, at::Device device) {
  std::string own;
  for (const auto& [name, entry] : entries) own += char('0' + int(entry.reduce)) + name + '\n';
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const std::string& lines : gather_texts(control, own)) {
    std::istringstream stream(lines);
    for (std::string line; std::getline(stream, line);) {
      const auto reduce = Reduce(line[0] - '0');
      // A value that changes no result.
      const double neutral = reduce == Reduce::max   ? -kInfinity
                             : reduce == Reduce::min ? kInfinity
                                                     : 0;
      const at::Tensor value =
          at::full({}, neutral, at::TensorOptions().dtype(at::kDouble).device(device));
      entries.try_emplace(line.substr(1), MetricSink::Entry{reduce, value});
    }
  }
}

void reduce_over_ranks(Entries& entries, Communicator& world, at::Device device) {
  std::vector<at::Tensor> values;
  std::vector<double> host_weights;
  for (auto& [name, entry] : entries) {
    values.push_back(entry.value);
    host_weights.push_back(entry.weight);
  }
  at::Tensor sums = at::stack(values), largest = sums.clone(), smallest = -sums;
  at::Tensor weights = at::tensor(host_weights, at::kDouble).to(device);
  world.all_reduce_sum(sums);
  world.all_reduce_sum(weights);
  world.all_reduce_max(largest);
  world.all_reduce_max(smallest);
  for (int64_t i = 0; auto& [name, entry] : entries) {
    if (entry.reduce == Reduce::max)
      entry.value = largest[i];
    else if (entry.reduce == Reduce::min)
      entry.value = -smallest[i];
    else
      entry.value = entry.is_mean() ? sums[i] / weights[i] : sums[i];
    entry.weight = 1;
    ++i;
  }
}

}  // namespace

RecordedMetrics take_metrics(MetricSink& sink, const Ranks& ranks, at::Device device) {
  RecordedMetrics recorded;
  recorded.values = at::empty({0}, at::TensorOptions().dtype(at::kDouble).device(device));
  if (!sink.is_open()) return recorded;
  Entries entries = sink.take();
  for (auto& [name, entry] : entries) entry.value = entry.value.to(device);
  const bool many = ranks.size() > 1;
  if (many) agree_on_names(entries, *ranks.control, device);
  if (entries.empty()) return recorded;
  if (many) reduce_over_ranks(entries, *ranks.world, device);
  std::vector<at::Tensor> values;
  for (const auto& [name, entry] : entries) {
    recorded.names.push_back(name);
    const at::Tensor value = entry.is_mean() ? entry.value / entry.weight : entry.value;
    values.push_back(entry.reduce == Reduce::rms ? value.sqrt() : value);
  }
  recorded.values = at::stack(values);
  return recorded;
}

}  // namespace dsv3
