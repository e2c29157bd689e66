#include <algorithm>
#include <array>
#include <cctype>

#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/metrics.h>

#include "sdk/metric_sink.h"

namespace dsv3 {
namespace {

constexpr std::array kCoreGroups{"train/", "val/", "throughput/", "data/", "memory/", "system/"};

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

std::map<std::string, MetricSink::Entry> MetricSink::take() {
  open_ = false;
  const std::lock_guard lock(mutex_);
  return std::exchange(entries_, {});
}

}  // namespace dsv3
