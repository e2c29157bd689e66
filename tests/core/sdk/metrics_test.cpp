// Tests how the metrics that components record are reduced over layers, micro-batches and ranks.
#include <cmath>

#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include <dsv3/runtime/rank_threads.h>
#include <dsv3/sdk/error.h>

#include "ranks/recorded_metrics.h"

using dsv3::Metrics;
using dsv3::MetricSink;
using dsv3::Reduce;

namespace {

using Values = std::map<std::string, double>;

Values values_of(const dsv3::RecordedMetrics& recorded) {
  Values values;
  for (size_t i = 0; i < recorded.names.size(); ++i)
    values[recorded.names[i]] = recorded.values[int64_t(i)].item<double>();
  return values;
}

Values take(MetricSink& sink) {
  return values_of(take_metrics(sink, {}, at::Device(at::kCPU)));
}

void record_all(const Metrics& metrics, const std::vector<double>& values, double weight) {
  for (const double value : values) {
    metrics.scalar("test/mean", value, Reduce::mean);
    metrics.scalar("test/weighted", value, Reduce::mean, weight * std::abs(value));
    metrics.scalar("test/rms", at::scalar_tensor(value, at::kFloat), Reduce::rms);
    metrics.scalar("test/weighted_rms", value, Reduce::rms, weight);
    metrics.scalar("test/sum", at::full({1, 1}, value, at::kDouble), Reduce::sum);
    metrics.scalar("test/max", value, Reduce::max);
    metrics.scalar("test/min", value, Reduce::min);
  }
}

}  // namespace

TEST_CASE("metrics are reduced over all values of one name") {
  const auto sink = std::make_shared<MetricSink>();
  const Metrics metrics(sink);
  sink->open();
  CHECK(metrics.wanted());
  record_all(metrics, {1, -2}, 1);
  record_all(metrics, {4}, 3);
  const Values values = take(*sink);
  CHECK(values.size() == 7);
  CHECK(values.at("test/mean") == Approx(1));
  CHECK(values.at("test/weighted") == Approx((1 - 4 + 48) / 15.0));  // weights 1, 2, 12
  CHECK(values.at("test/rms") == Approx(std::sqrt(7)));
  CHECK(values.at("test/weighted_rms") == Approx(std::sqrt((1 + 4 + 48) / 5.0)));
  CHECK(values.at("test/sum") == Approx(3));
  CHECK(values.at("test/max") == 4);
  CHECK(values.at("test/min") == -2);
}

TEST_CASE("metrics are recorded only between open and take") {
  const auto sink = std::make_shared<MetricSink>();
  const Metrics metrics(sink);
  metrics.scalar("test/early", 1);
  CHECK_FALSE(metrics.wanted());
  sink->open();
  metrics.scalar("test/value", 2);
  CHECK(take(*sink) == Values{{"test/value", 2}});
  CHECK_FALSE(metrics.wanted());
  metrics.scalar("test/late", 3);
  sink->open();
  CHECK(take(*sink).empty());
  CHECK_FALSE(Metrics().wanted());
  CHECK_NOTHROW(Metrics().scalar("anything", at::Tensor()));
}

TEST_CASE("metrics keep no graph and do not change recorded tensors") {
  const auto sink = std::make_shared<MetricSink>();
  sink->open();
  const at::Tensor value = at::full({}, 2.0, at::kDouble).requires_grad_();
  for (const Reduce reduce : {Reduce::mean, Reduce::rms, Reduce::sum, Reduce::max, Reduce::min})
    for (int i = 0; i < 2; ++i)
      Metrics(sink).scalar("test/" + std::to_string(int(reduce)), value * 1, reduce);
  const at::Tensor same = value.detach();
  Metrics(sink).scalar("test/sum", same, Reduce::sum);
  Metrics(sink).scalar("test/sum", 5, Reduce::sum);
  const auto recorded = take_metrics(*sink, {}, at::Device(at::kCPU));
  CHECK_FALSE(recorded.values.requires_grad());
  CHECK(value.item<double>() == 2);
  CHECK(values_of(recorded).at("test/sum") == 7);
}

TEST_CASE("metrics are sorted by name") {
  const auto sink = std::make_shared<MetricSink>();
  sink->open();
  for (const char* name : {"b/x", "a/z", "a/b c-d_e.f/12"}) Metrics(sink).scalar(name, 1);
  CHECK(take_metrics(*sink, {}, at::Device(at::kCPU)).names ==
        std::vector<std::string>{"a/b c-d_e.f/12", "a/z", "b/x"});
}

TEST_CASE("metrics reject values that are not scalars, and invalid names") {
  const auto sink = std::make_shared<MetricSink>();
  const Metrics metrics(sink);
  sink->open();
  CHECK_THROWS_WITH(metrics.scalar("a/b", at::ones({2})),
                    Catch::Contains("cannot record metric 'a/b': the value has shape [2]"));
  CHECK_THROWS_WITH(metrics.scalar("a/b", at::Tensor()), Catch::Contains("undefined tensor"));
  CHECK_THROWS_WITH(metrics.scalar("a/b:c", 1), Catch::Contains("use letters, digits"));
  for (const char* name : {"entropy", "/entropy", "moe/"})
    CHECK_THROWS_WITH(metrics.scalar(name, 1), Catch::Contains("start with a group"));
  for (const char* name : {"train/x", "val/x", "throughput/x", "data/x", "memory/x", "system/x"})
    CHECK_THROWS_WITH(metrics.scalar(name, 1), Catch::Contains("belongs to the core"));
  CHECK(take(*sink).empty());
  sink->open();
  metrics.scalar("a/max", 1, Reduce::max);
  CHECK_THROWS_WITH(metrics.scalar("a/max", 1, Reduce::min),
                    Catch::Contains("recorded with another reduction"));
}

TEST_CASE("metrics are reduced over ranks as over layers") {
  const std::vector<std::vector<double>> values{{1, -2}, {4}, {0.5, 3, 7}};
  const std::vector<double> weights{1, 3, 2};
  const auto together = std::make_shared<MetricSink>();
  together->open();
  for (size_t i = 0; i < values.size(); ++i) record_all(Metrics(together), values[i], weights[i]);
  Metrics(together).scalar("test/one", 5, Reduce::max);
  const Values expected = take(*together);
  std::vector<Values> reduced(values.size());
  dsv3::on_ranks(std::ssize(values), [&](const std::shared_ptr<dsv3::Communicator>& world) {
    const size_t rank = size_t(world->rank());
    const auto sink = std::make_shared<MetricSink>();
    sink->open();
    record_all(Metrics(sink), values[rank], weights[rank]);
    // Not all ranks record every metric.
    if (rank == 1) Metrics(sink).scalar("test/one", 5, Reduce::max);
    reduced[rank] = values_of(take_metrics(*sink, {world, world}, at::Device(at::kCPU)));
  });
  for (const Values& rank : reduced) {
    REQUIRE(rank.size() == expected.size());
    for (const auto& [name, value] : expected) CHECK(rank.at(name) == Approx(value));
  }
}
