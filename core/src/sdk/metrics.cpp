#include <algorithm>
#include <array>
#include <cctype>
#include <limits>
#include <sstream>

#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/metrics.h>

#include "ranks/exchange.h"
#include "sdk/metric_sink.h"

namespace dsv3 {
namespace {

constexpr std::array kCoreGroups{"train/", "val/", "throughput/", "data/", "memory/"};

/// Characters that every tracker accepts in metric names.
bool is_valid(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) ||
         std::string_view("_-./ ").find(c) != std::string_view::npos;
}

void check_name(const std::string& name) {
  const auto reject = [&](const std::string& why) {
    throw Error("cannot record metric '" + name + "': " + why, ExitCode::plugin);
  };
  if (!std::ranges::all_of(name, is_valid))
    reject("use letters, digits, '_', '-', '.', ' ' and '/'");
  const size_t slash = name.find('/');
  if (slash == name.npos || slash == 0 || slash + 1 == name.size())
    reject("start with a group, as in 'moe/entropy'");
  for (const char* group : kCoreGroups)
    if (name.starts_with(group))
      reject(std::string("the group '") + group + "' belongs to the core");
}

}  // namespace

bool Metrics::wanted() const {
  return sink_ && sink_->is_open();
}

void Metrics::scalar(const std::string& name, const at::Tensor& value, Reduce reduce,
                     double weight) const {
  if (wanted()) sink_->add(name, value, reduce, weight);
}

void Metrics::scalar(const std::string& name, double value, Reduce reduce, double weight) const {
  if (wanted()) sink_->add(name, at::scalar_tensor(value, at::kDouble), reduce, weight);
}

void MetricSink::add(const std::string& name, const at::Tensor& recorded, Reduce reduce,
                     double weight) {
  if (!recorded.defined() || recorded.numel() != 1)
    throw Error("cannot record metric '" + name + "': the value " +
                    (recorded.defined() ? c10::str("has shape ", recorded.sizes())
                                        : std::string("is an undefined tensor")) +
                    "; record a scalar",
                ExitCode::plugin);
  at::Tensor value = recorded.detach().to(at::kDouble).reshape({});
  if (reduce == Reduce::rms) value = value.square();
  if (reduce == Reduce::mean || reduce == Reduce::rms) value = value * weight;
  const std::lock_guard lock(mutex_);
  if (!entries_.contains(name)) check_name(name);
  const auto [found, added] = entries_.try_emplace(name, Entry{reduce, value, weight});
  if (added) return;
  Entry& entry = found->second;
  if (entry.reduce != reduce)
    throw Error("cannot record metric '" + name + "': it was recorded with another reduction",
                ExitCode::plugin);
  // A component may record one name from the host and from the device.
  if (entry.value.is_cpu())
    entry.value = entry.value.to(value.device());
  else
    value = value.to(entry.value.device());
  switch (reduce) {
    case Reduce::max:
      entry.value = at::maximum(entry.value, value);
      break;
    case Reduce::min:
      entry.value = at::minimum(entry.value, value);
      break;
    default:
      entry.value = entry.value + value;
      entry.weight += weight;
  }
}

bool MetricSink::Entry::is_mean() const {
  return reduce == Reduce::mean || reduce == Reduce::rms;
}

void MetricSink::agree_on_names(Communicator& control, at::Device device) {
  std::string own;
  for (const auto& [name, entry] : entries_) own += char('0' + int(entry.reduce)) + name + '\n';
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
      entries_.try_emplace(line.substr(1), Entry{reduce, value});
    }
  }
}

void MetricSink::reduce_over_ranks(Communicator& world, at::Device device) {
  std::vector<at::Tensor> values;
  std::vector<double> host_weights;
  for (auto& [name, entry] : entries_) {
    values.push_back(entry.value);
    host_weights.push_back(entry.weight);
  }
  at::Tensor sums = at::stack(values), largest = sums.clone(), smallest = -sums;
  at::Tensor weights = at::tensor(host_weights, at::kDouble).to(device);
  world.all_reduce_sum(sums);
  world.all_reduce_sum(weights);
  world.all_reduce_max(largest);
  world.all_reduce_max(smallest);
  for (int64_t i = 0; auto& [name, entry] : entries_) {
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

RecordedMetrics MetricSink::take(const Ranks& ranks, at::Device device) {
  RecordedMetrics recorded;
  recorded.values = at::empty({0}, at::TensorOptions().dtype(at::kDouble).device(device));
  if (!open_.exchange(false)) return recorded;
  const std::lock_guard lock(mutex_);
  for (auto& [name, entry] : entries_) entry.value = entry.value.to(device);
  const bool many = ranks.world->size() > 1;
  if (many) agree_on_names(*ranks.control, device);
  if (entries_.empty()) return recorded;
  if (many) reduce_over_ranks(*ranks.world, device);
  std::vector<at::Tensor> values;
  for (const auto& [name, entry] : entries_) {
    recorded.names.push_back(name);
    const at::Tensor value = entry.is_mean() ? entry.value / entry.weight : entry.value;
    values.push_back(entry.reduce == Reduce::rms ? value.sqrt() : value);
  }
  recorded.values = at::stack(values);
  entries_.clear();
  return recorded;
}

}  // namespace dsv3
