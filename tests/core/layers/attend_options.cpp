// Compares attention with windows, sinks, soft-capped scores and masks with a formula in float64,
// in training and in decoding.
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <catch2/catch.hpp>

#include <dsv3/sdk/packing.h>

#include "layers.h"
#include "ranks/recorded_metrics.h"

using test::difference;
using test::gradients;
using test::normal;

namespace {

// bool [B, T, S], from a function of row, query and key.
at::Tensor pairs(int64_t rows, int64_t queries, int64_t keys,
                 const std::function<bool(int64_t row, int64_t query, int64_t key)>& may) {
  at::Tensor result = at::zeros({rows, queries, keys}, at::kBool);
  auto values = result.accessor<bool, 3>();
  for (int64_t b = 0; b < rows; ++b)
    for (int64_t t = 0; t < queries; ++t)
      for (int64_t s = 0; s < keys; ++s) values[b][t][s] = may(b, t, s);
  return result;
}

// sum_s e^(score_s) v_s / (e^sink + sum_s e^(score_s)), over the keys that a query may attend to.
at::Tensor formula(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const at::Tensor& may, const dsv3::AttendOptions& options) {
  const int64_t share = q.size(2) / k.size(2);
  const at::Tensor keys = k.repeat_interleave(share, 2), values = v.repeat_interleave(share, 2);
  at::Tensor scores = at::einsum("bthd,bshd->bhts", {q, keys}) * *options.scale;
  if (options.softcap > 0) scores = options.softcap * (scores / options.softcap).tanh();
  const at::Tensor e = scores.exp() * may.unsqueeze(1);
  at::Tensor sum = e.sum(-1, true);
  if (options.sinks.defined()) sum = sum + options.sinks.exp().view({1, -1, 1, 1});
  return at::einsum("bhts,bshd->bthd", {e / sum, values});
}

// Inputs of one call. Its options have a scale.
struct Call {
  at::Tensor q, k, v;
  dsv3::Sequence seq;
  dsv3::AttendOptions options;
  at::Tensor may;  // bool [B, T, S]

  at::Tensor expected() const { return formula(q, k, v, may, options); }
  at::Tensor actual() const { return dsv3::attend(q, k, v, seq, options); }
  std::vector<at::Tensor> inputs() const {
    std::vector<at::Tensor> all{q, k, v};
    if (options.sinks.defined()) all.push_back(options.sinks);
    return all;
  }
};

enum class Rows { one_document, documents, mask };

// Two rows of `length` tokens with 4 heads. Documents and the mask are irregular.
Call make_call(int64_t length, Rows rows, std::optional<int64_t> window, bool sinks, double softcap,
               int64_t key_heads = 2) {
  Call call;
  call.q = normal({2, length, 4, 6}, 1).requires_grad_();
  call.k = normal({2, length, key_heads, 6}, 2).requires_grad_();
  call.v = normal({2, length, key_heads, 5}, 3).requires_grad_();
  call.options = {.scale = 0.4, .window = window, .softcap = softcap};
  if (sinks) call.options.sinks = normal({4}, 4).requires_grad_();
  call.seq = test::sequence(2, length);
  const auto document = [=](int64_t b, int64_t t) { return t / (length / (2 + b) + 1); };
  const auto visible = [=](int64_t b, int64_t t, int64_t s) {
    if (rows == Rows::documents && document(b, t) != document(b, s)) return false;
    if (rows == Rows::mask && s != t && (s + 2 * t + b) % 3 == 0) return false;
    if (s > t && (rows != Rows::mask || window)) return false;
    return !window || s > t - *window;
  };
  call.may = pairs(2, length, length, visible);
  if (rows == Rows::documents) {
    const at::Tensor ids = at::zeros({2, length}, at::kLong);
    for (int64_t b = 0; b < 2; ++b)
      for (int64_t t = 0; t < length; ++t) ids[b][t] = document(b, t);
    call.seq.packing = dsv3::packing_of(ids);
  } else if (rows == Rows::mask) {
    call.seq.packing = std::make_shared<const dsv3::Packing>(
        pairs(2, length, length, [](int64_t b, int64_t t, int64_t s) {
          return s == t || (s + 2 * t + b) % 3 != 0;
        }).unsqueeze(1));
  }
  return call;
}

// Checks results and gradients of the fused and the reference operators.
void check_call(const Call& call) {
  const at::Tensor expected = call.expected();
  const auto expected_grads = gradients(expected, call.inputs());
  const auto check = [&] {
    const at::Tensor y = call.actual();
    CHECK(difference(y, expected) < 1e-12);
    const auto grads = gradients(y, call.inputs());
    // Not relative: with one visible key, the gradients of queries and keys are 0.
    for (size_t i = 0; i < grads.size(); ++i)
      CHECK((grads[i] - expected_grads[i]).abs().max().item<double>() < 1e-11);
  };
  check();
  const test::ReferenceOps reference;
  check();
}

}  // namespace

TEST_CASE("attend supports any combination of options") {
  const auto rows = GENERATE(Rows::one_document, Rows::documents, Rows::mask);
  const auto window = GENERATE(std::optional<int64_t>(), 1, 4, 100);
  const bool sinks = GENERATE(false, true);
  const double softcap = GENERATE(0.0, 0.7);
  CAPTURE(int(rows), window.value_or(0), sinks, softcap);
  check_call(make_call(13, rows, window, sinks, softcap));
}

TEST_CASE("attend with options supports any number of key heads") {
  const int64_t key_heads = GENERATE(1, 2, 4);
  check_call(make_call(9, Rows::documents, 3, true, 2, key_heads));
}

TEST_CASE("attend with options computes several blocks of queries") {
  const auto rows = GENERATE(Rows::one_document, Rows::documents);
  const auto window = GENERATE(std::optional<int64_t>(), 1, 60, 200);
  CAPTURE(int(rows), window.value_or(0));
  check_call(make_call(290, rows, window, true, 0));
}

TEST_CASE("attend without options respects any mask") {
  check_call(make_call(13, Rows::mask, {}, false, 0));
}

TEST_CASE("attend with options has gradients that match central differences") {
  const Call call = make_call(7, Rows::documents, 3, true, 0.9);
  CHECK(test::gradient_error([&] { return call.actual(); }, call.inputs()) < 1e-7);
}

TEST_CASE("attend with options supports fp32 and bf16") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  Call call = make_call(40, Rows::documents, 11, true, GENERATE(0.0, 5.0));
  for (at::Tensor* x : {&call.q, &call.k, &call.v, &call.options.sinks})
    *x = x->detach().to(dtype).to(at::kDouble).requires_grad_();
  const at::Tensor expected = call.expected();
  const auto expected_grads = gradients(expected, call.inputs());
  for (at::Tensor* x : {&call.q, &call.k, &call.v, &call.options.sinks})
    *x = x->detach().to(dtype).requires_grad_();
  const at::Tensor y = call.actual();
  const double bound = dtype == at::kFloat ? 2e-6 : 2e-2;
  CHECK(y.scalar_type() == dtype);
  CHECK(difference(y, expected) < bound);
  const auto grads = gradients(y, call.inputs());
  for (size_t i = 0; i < grads.size(); ++i) {
    CHECK(grads[i].scalar_type() == dtype);
    CHECK(difference(grads[i], expected_grads[i]) < bound);
  }
}

TEST_CASE("attend with a window of at least all tokens is plain attention, bit for bit") {
  Call call = make_call(50, Rows::documents, 50, false, 0);
  const at::Tensor windowed = call.actual();
  call.options.window.reset();
  CHECK(at::equal(windowed, call.actual()));
}

TEST_CASE("a query that a mask and a window leave without keys returns zeros") {
  Call call = make_call(4, Rows::one_document, 2, false, 0);
  at::Tensor mask = at::ones({1, 1, 4, 4}, at::kBool);
  mask[0][0][2].narrow(0, 1, 2).fill_(false);  // the window of query 2
  call.seq.packing = std::make_shared<const dsv3::Packing>(mask);
  const at::Tensor y = call.actual();
  CHECK(y.select(1, 2).abs().max().item<double>() == 0);
  for (const at::Tensor& gradient : gradients(y, call.inputs()))
    CHECK(at::isfinite(gradient).all().item<bool>());
}

namespace {

// Attention layers of different rows share a cache. Each row's results must equal those of a
// forward pass without a cache.
void check_decoding(std::optional<int64_t> window, std::optional<int64_t> bound, bool sinks) {
  const int64_t heads = 4, key_heads = 2, dim = 6, width = key_heads * dim, length = 40;
  dsv3::AttendOptions options{.scale = 0.5, .window = window, .softcap = 3};
  if (sinks) options.sinks = normal({heads}, 9);
  const at::Tensor q = normal({2, length, heads, dim}, 5),
                   k = normal({2, length, key_heads, dim}, 6),
                   v = normal({2, length, key_heads, dim}, 7);
  const at::Tensor expected = dsv3::attend(q, k, v, test::sequence(2, length), options);
  dsv3::KvCache cache(2, 2 * width, at::kDouble, at::kCPU, bound);
  const auto add = [&](const std::vector<int64_t>& counts) {
    std::vector<at::Tensor> queries, values, results;
    for (int64_t row = 0; row < 2; ++row) {
      const auto part = [&](const at::Tensor& x) {
        return x[row].narrow(0, cache.lengths()[size_t(row)], counts[size_t(row)]);
      };
      queries.push_back(part(q));
      values.push_back(at::cat({part(k).flatten(1), part(v).flatten(1)}, 1));
      results.push_back(part(expected));
    }
    cache.expect(counts);
    cache.append(at::cat(values).unsqueeze(0));
    dsv3::Sequence seq;
    seq.cache = &cache;
    const at::Tensor y = cache.each_row(
        at::cat(queries).unsqueeze(0), [&](const at::Tensor& row_q, const at::Tensor& all) {
          if (bound) CHECK(all.size(1) <= row_q.size(1) + *bound - 1);
          const auto split = [&](int64_t begin) {
            return all.narrow(2, begin, width).unflatten(2, {key_heads, dim});
          };
          return dsv3::attend(row_q, split(0), split(width), seq, options);
        });
    CHECK(difference(y, at::cat(results).unsqueeze(0)) < 1e-12);
  };
  add({9, 3});
  add({1, 1});
  add({4, 1});  // three drafts in the first row
  cache.truncate(0, 11);
  add({1, 2});
  cache.truncate(1, 6);
  for (int step = 0; step < 20; ++step) add({1, 1});
  cache.truncate(0, 0);
  add({12, 0});
  add({2, 3});
}

}  // namespace

TEST_CASE("attend with options decodes the same results as in training") {
  const auto window = GENERATE(std::optional<int64_t>(), 1, 2, 5, 100);
  const bool sinks = GENERATE(false, true);
  check_decoding(window, std::nullopt, sinks);
  const test::ReferenceOps reference;
  check_decoding(window, std::nullopt, sinks);
}

TEST_CASE("attend decodes the same results from a cache that keeps only the window") {
  const int64_t window = GENERATE(1, 2, 5, 100);
  check_decoding(window, window, true);
}

TEST_CASE("a cache with a window drops the tokens outside of it") {
  dsv3::KvCache cache(1, 2, at::kFloat, at::kCPU, 10);
  at::Tensor row = normal({1000, 2}, 8, at::kFloat);
  int64_t cached = 0;
  const auto add = [&](int64_t count) {
    const int64_t begin = cache.lengths()[0];
    cache.expect({count});
    cache.append(row.narrow(0, begin, count).unsqueeze(0));
    cached = std::min<int64_t>(begin, 9) + count;
    cache.each_row(row.narrow(0, 0, count).unsqueeze(0),
                   [&](const at::Tensor& q, const at::Tensor& all) {
                     CHECK(at::equal(all[0], row.narrow(0, begin + count - cached, cached)));
                     return q;
                   });
    CHECK(cache.bytes() == cached * 2 * 4);
    CHECK(cache.reserved_bytes() < (cached + 64) * 2 * 4);
    CHECK(cache.lengths()[0] == begin + count);
  };
  add(400);
  for (int step = 0; step < 150; ++step) add(1);
  add(5);
  cache.truncate(0, 550);  // rejects all five
  add(1);
  CHECK_THROWS_WITH(cache.truncate(0, 549),
                    Catch::Contains("row 0 cannot be truncated to 549 tokens") &&
                        Catch::Contains("window of 10 tokens"));
  add(30);
  cache.truncate(0, 0);
  CHECK(cache.reserved_bytes() == 0);
  add(5);
  cache.truncate(0, 2);  // no token has been dropped
  CHECK(cache.bytes() == 2 * 2 * 4);
  CHECK_THROWS_WITH(dsv3::KvCache(1, 2, at::kFloat, at::kCPU, 0), Catch::Contains("at least 1"));
}

TEST_CASE("attend respects a mask in decoding") {
  const int64_t queries = GENERATE(1, 3), keys = 7, key_heads = GENERATE(4, 2);
  const bool options = GENERATE(false, true);
  const at::Tensor may = pairs(1, queries, keys, [=](int64_t, int64_t t, int64_t s) {
    return s == keys - queries + t || (s + t) % 3 == 0;
  });
  Call call{normal({1, queries, 4, 8}, 26),
            normal({1, keys, key_heads, 8}, 27),
            normal({1, keys, key_heads, 8}, 28),
            {},
            {.scale = 0.4},
            may};
  dsv3::KvCache cache(1, 1, at::kDouble, at::kCPU);
  call.seq.cache = &cache;
  call.seq.packing = std::make_shared<const dsv3::Packing>(may.unsqueeze(1));
  if (options) call.options.sinks = normal({4}, 29);
  CHECK(difference(call.actual(), call.expected()) < 1e-12);
  const test::ReferenceOps reference;
  CHECK(difference(call.actual(), call.expected()) < 1e-12);
}

TEST_CASE("attend rejects invalid masks and options") {
  const Call call = make_call(6, Rows::one_document, {}, false, 0);
  const auto attend = [&](const dsv3::AttendOptions& options) {
    return dsv3::attend(call.q, call.k, call.v, call.seq, options);
  };
  CHECK_THROWS_WITH(attend({.window = 0}), Catch::Contains("the window is 0 tokens"));
  CHECK_THROWS_WITH(attend({.softcap = -1}), Catch::Contains("softcap is -1"));
  CHECK_THROWS_WITH(attend({.sinks = at::zeros({3}, at::kDouble)}),
                    Catch::Contains("sinks [3] do not match q [2, 6, 4, 6]"));
  const auto mask = [](at::IntArrayRef sizes, at::ScalarType dtype = at::kBool) {
    dsv3::Sequence seq = test::sequence(2, 6);
    seq.packing = std::make_shared<const dsv3::Packing>(at::ones(sizes, dtype));
    return seq;
  };
  CHECK_NOTHROW(dsv3::attend(call.q, call.k, call.v, mask({6, 6}), {}));
  for (const dsv3::Sequence& seq : {mask({1, 1, 6, 5}), mask({2, 4, 6, 6}), mask({3, 1, 6, 6})})
    CHECK_THROWS_WITH(dsv3::attend(call.q, call.k, call.v, seq, {}),
                      Catch::Contains("broadcast to [batch, 1, queries, keys] = [2, 1, 6, 6]"));
  CHECK_THROWS_WITH(dsv3::attend(call.q, call.k, call.v, mask({1, 1, 6, 6}, at::kFloat), {}),
                    Catch::Contains("the mask has dtype Float"));
  dsv3::KvCache cache(2, 1, at::kDouble, at::kCPU);
  dsv3::Sequence documents = make_call(6, Rows::documents, {}, false, 0).seq;
  documents.cache = &cache;
  CHECK_THROWS_WITH(dsv3::attend(call.q.narrow(1, 0, 2), call.k, call.v, documents, {}),
                    Catch::Contains("packed documents with 2 queries and 6 keys"));
}

namespace {

// The peak of the bytes that LibTorch's CPU allocator holds on this thread.
class PeakMemory final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    live_ += bytes;
    peak = std::max(peak, live_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t peak = 0;

 private:
  int64_t live_ = 0;
};

}  // namespace

TEST_CASE("the memory of attend with a window is linear in the number of tokens") {
  const int64_t length = 4096;
  const bool documents = GENERATE(false, true);
  const auto input = [&](uint64_t seed) {
    return normal({1, length, 2, 8}, seed, at::kFloat).requires_grad_();
  };
  const at::Tensor q = input(1), k = input(2), v = input(3);
  dsv3::Sequence seq = test::sequence(1, length);
  if (documents) seq.packing = dsv3::packing_of(at::arange(length).div(100, "floor").view({1, -1}));
  const auto memory = std::make_shared<PeakMemory>();
  {
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, memory);
    gradients(dsv3::attend(q, k, v, seq, {.window = 128}), {q, k, v});
  }
  const int64_t inputs = length * 2 * 8 * 4;
  CHECK(memory->peak > inputs);              // the result
  CHECK(memory->peak < 24 * inputs);         // 6 MiB
  CHECK(length * length > 2 * 24 * inputs);  // the size of a boolean mask, which would be too large
}

namespace {

double max_logit(const Call& call) {
  const auto sink = std::make_shared<dsv3::MetricSink>();
  sink->open();
  dsv3::Sequence seq = call.seq;
  seq.metrics = dsv3::Metrics(sink);
  dsv3::attend(call.q, call.k, call.v, seq, call.options);
  const dsv3::RecordedMetrics recorded = take_metrics(*sink, {}, at::Device(at::kCPU));
  REQUIRE(recorded.names == std::vector<std::string>{"attention/max_logit"});
  return recorded.values[0].item<double>();
}

}  // namespace

TEST_CASE("attend records the largest score of all queries if there are few") {
  const auto rows = GENERATE(Rows::one_document, Rows::documents, Rows::mask);
  const auto window = GENERATE(std::optional<int64_t>(), 4);
  const Call call = make_call(30, rows, window, GENERATE(false, true), GENERATE(0.0, 0.7));
  const at::Tensor scores =
      at::einsum("bthd,bshd->bhts", {call.q, call.k.repeat_interleave(2, 2)}) * 0.4;
  const at::Tensor seen = scores.masked_select(call.may.unsqueeze(1));
  CHECK(max_logit(call) == Approx(seen.max().item<double>()).epsilon(1e-12));
  CHECK(max_logit(call) < scores.max().item<double>());
}

TEST_CASE("attend samples 64 queries of long or many rows") {
  const auto [batch, length] = GENERATE(std::pair{2, 500}, std::pair{150, 4});
  const at::Tensor q = at::zeros({batch, length, 1, 2}, at::kDouble);
  const at::Tensor k = at::ones({batch, length, 1, 2}, at::kDouble);
  const auto recorded = [&](int64_t row, int64_t query) {
    const at::Tensor marked = q.clone();
    marked[row][query].fill_(3);
    return max_logit({marked, k, k, test::sequence(batch, length), {.scale = 0.5}, {}}) > 0;
  };
  int64_t sampled = 0;
  for (int64_t row = 0; row < batch; ++row)
    for (int64_t query = 0; query < length; ++query) sampled += recorded(row, query);
  CHECK(sampled > 32);
  CHECK(sampled <= 64);
  CHECK(recorded(0, length - 1));
}

TEST_CASE("attend records no metric if none is wanted") {
  const auto sink = std::make_shared<dsv3::MetricSink>();
  Call call = make_call(5, Rows::one_document, {}, false, 0);
  call.seq.metrics = dsv3::Metrics(sink);
  call.actual();
  CHECK(take_metrics(*sink, {}, at::Device(at::kCPU)).names.empty());
}
