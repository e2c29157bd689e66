// Tests that loading in a separate thread returns the same batches as loading in the calling thread
// and passes errors on to the caller.
#include <atomic>
#include <chrono>
#include <thread>

#include <catch2/catch.hpp>

#include <dsv3/runtime/data.h>
#include <dsv3/sdk/error.h>

#include "core/data/documents.h"

using dsv3::Batch;
using dsv3::Json;
using dsv3::Loader;
using dsv3::Split;

namespace {

dsv3::DataContext packed_context(Split split) {
  return stream_context(split, 2, 6);
}

std::shared_ptr<dsv3::Data> packed(Split split) {
  return std::make_shared<dsv3::PackedStream>(
      std::make_shared<NumberedDocuments>(std::vector<int64_t>{5, 1, 12, 3, 30, 2, 9}),
      packed_context(split));
}

/// One row of two tokens per batch. Uses the validation split because a training stream must not
/// end.
dsv3::DataContext counter_context() {
  return {.split = Split::validation, .micro_batch = 1, .sequence = 1};
}

/// A data source that counts up to `end`, then ends the stream or throws.
class Counter final : public dsv3::Data {
 public:
  explicit Counter(int64_t end, bool fails = false) : end_(end), fails_(fails) {}
  Batch next() override {
    calls += 1;
    if (number_ == end_ && fails_) throw dsv3::Error("disk removed", dsv3::ExitCode::data);
    if (number_ == end_) return {};
    return {at::full({1, 2}, number_++, at::kLong), {}};
  }
  nlohmann::json state() const override { return number_; }
  void load_state(const nlohmann::json& state) override { number_ = state.get<int64_t>(); }
  std::atomic<int64_t> calls = 0;

 private:
  int64_t number_ = 0, end_;
  bool fails_;
};

int64_t number_of(const Batch& batch) {
  return batch.tokens[0][0].item<int64_t>();
}

}  // namespace

TEST_CASE("a loader returns the batches and states of its data source") {
  for (const Split split : {Split::train, Split::validation}) {
    for (const int64_t depth : {0, 1, 4}) {
      const auto direct = packed(split);
      Loader loader(packed(split), packed_context(split), depth);
      CHECK(loader.state() == direct->state());
      for (int call = 0; call < 25; ++call) {
        std::vector<Row> expected, actual;
        REQUIRE(append_rows(direct->next(), expected) == append_rows(loader.next(), actual));
        CHECK(actual == expected);
        if (!expected.empty()) CHECK(loader.state() == direct->state());
      }
      CHECK(loader.wait_seconds() >= 0);
    }
  }
}

TEST_CASE("a loader loads at most `depth` batches ahead") {
  const auto counter = std::make_shared<Counter>(1000);
  Loader loader(counter, counter_context(), 3);
  CHECK(counter->calls == 0);
  CHECK(number_of(loader.next()) == 0);
  // Three batches are in the queue, and a fourth has been loaded but does not fit.
  for (int tries = 0; counter->calls < 5 && tries < 1000; ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(counter->calls == 5);
  CHECK(loader.state() == 1);
}

TEST_CASE("an error in the data plugin reaches the caller after the preceding batches") {
  for (const int64_t depth : {0, 1, 4}) {
    Loader loader(std::make_shared<Counter>(3, true), counter_context(), depth);
    for (int64_t number = 0; number < 3; ++number) CHECK(number_of(loader.next()) == number);
    for (int repeat = 0; repeat < 2; ++repeat) {
      try {
        loader.next();
        FAIL("nothing was thrown");
      } catch (const dsv3::Error& error) {
        CHECK(error.code() == dsv3::ExitCode::data);
        CHECK(std::string(error.what()) == "disk removed");
      }
    }
    CHECK(loader.state() == 3);
    loader.load_state(1);
    CHECK(number_of(loader.next()) == 1);
    CHECK(number_of(loader.next()) == 2);
    CHECK_THROWS_AS(loader.next(), dsv3::Error);
  }
}

TEST_CASE("after the end of the stream, next() returns no batch until a state is loaded") {
  for (const int64_t depth : {0, 2}) {
    Loader loader(std::make_shared<Counter>(2), counter_context(), depth);
    CHECK(number_of(loader.next()) == 0);
    CHECK(number_of(loader.next()) == 1);
    for (int repeat = 0; repeat < 3; ++repeat) CHECK_FALSE(loader.next().tokens.defined());
    loader.load_state(0);
    CHECK(number_of(loader.next()) == 0);
  }
}

TEST_CASE("loading a state discards batches that were loaded ahead") {
  Loader loader(packed(Split::train), packed_context(Split::train), 4);
  std::vector<Row> skipped, expected, actual;
  append_rows(loader.next(), skipped);
  const Json state = loader.state();
  for (int call = 0; call < 6; ++call) append_rows(loader.next(), expected);
  loader.load_state(state);
  CHECK(loader.state() == state);
  for (int call = 0; call < 6; ++call) append_rows(loader.next(), actual);
  CHECK(actual == expected);
}
