// Compares operators with simple implementations in every dtype, and their gradients with central
// differences.
#include <ATen/Parallel.h>
#include <catch2/catch.hpp>

#include <dsv3/sdk/expert_rows.h>
#include <dsv3/sdk/packing.h>

#include "layers.h"

using test::difference;
using test::gradient_error;
using test::gradients;
using test::normal;

namespace {

double bound(at::ScalarType dtype) {
  if (dtype == at::kDouble) return 1e-12;
  return dtype == at::kFloat ? 2e-6 : 2e-2;
}

// Returns a leaf tensor with the values of `wide` rounded to `dtype`, and a float64 leaf tensor
// with the same rounded values.
std::pair<at::Tensor, at::Tensor> leaves(const at::Tensor& wide, at::ScalarType dtype) {
  const at::Tensor narrow = wide.to(dtype);
  return {narrow.detach().clone().requires_grad_(),
          narrow.to(at::kDouble).detach().clone().requires_grad_()};
}

at::Tensor silu_formula(const at::Tensor& gate_up) {
  const int64_t size = gate_up.size(-1) / 2;
  const at::Tensor gate = gate_up.narrow(-1, 0, size), up = gate_up.narrow(-1, size, size);
  return gate / ((-gate).exp() + 1) * up;
}

at::Tensor rms_formula(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x / ((x * x).sum(-1, true) / x.size(-1) + eps).sqrt() * weight;
}

}  // namespace

TEST_CASE("swiglu computes silu(gate) * up") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kDouble);
  // Sizes smaller than a SIMD vector, a multiple of it, and a multiple plus a remainder.
  const int64_t size = GENERATE(5, 32, 83);
  const auto [x, wide] = leaves(normal({3, 7, 2 * size}, 1) * 3, dtype);
  const at::Tensor y = dsv3::swiglu(x), expected = silu_formula(wide);
  CHECK(y.scalar_type() == dtype);
  CHECK(difference(y, expected) < bound(dtype));
  const at::Tensor dx = gradients(y, {x})[0], dwide = gradients(expected, {wide})[0];
  CHECK(difference(dx, dwide) < bound(dtype));
}

TEST_CASE("swiglu handles extreme gate values") {
  const at::Tensor gate = at::tensor({-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4}, at::kDouble);
  const at::Tensor gate_up = at::cat({gate, at::ones(7, at::kDouble)}).to(at::kFloat);
  const at::Tensor y = dsv3::swiglu(gate_up), expected = at::silu(gate).to(at::kFloat);
  CHECK(at::allclose(y, expected, 1e-6, 1e-30));
  const at::Tensor nan = dsv3::swiglu(at::full({2, 40}, NAN, at::kFloat));
  CHECK(nan.isnan().all().item<bool>());
  CHECK(dsv3::swiglu(at::full({2, 40}, NAN, at::kBFloat16)).isnan().all().item<bool>());
}

TEST_CASE("swiglu multiplies rows by optional row weights") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kDouble);
  const auto [x, wide] = leaves(normal({9, 46}, 2), dtype);
  const auto math = dtype == at::kDouble ? at::kDouble : at::kFloat;
  const auto [w, wide_w] = leaves(normal({9}, 3), math);
  const at::Tensor y = dsv3::swiglu(x, w), expected = silu_formula(wide) * wide_w.unsqueeze(1);
  CHECK(difference(y, expected) < bound(dtype));
  const auto actual = gradients(y, {x, w}), expected_grads = gradients(expected, {wide, wide_w});
  CHECK(actual[1].scalar_type() == math);
  for (int i = 0; i < 2; ++i) CHECK(difference(actual[i], expected_grads[i]) < bound(dtype));
}

TEST_CASE("rms_norm computes x / sqrt(mean(x^2) + eps) * weight") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kDouble);
  const int64_t size = GENERATE(7, 48, 100);
  const auto [x, wide] = leaves(normal({5, 21, size}, 4) * 2, dtype);
  const auto [w, wide_w] = leaves(normal({size}, 5), dtype);
  const double eps = 1e-2;  // large, so that ignoring eps would fail the test
  const at::Tensor y = dsv3::rms_norm(x, w, eps), expected = rms_formula(wide, wide_w, eps);
  CHECK(y.scalar_type() == dtype);
  CHECK(difference(y, expected) < bound(dtype));
  const auto actual = gradients(y, {x, w}), expected_grads = gradients(expected, {wide, wide_w});
  for (int i = 0; i < 2; ++i) CHECK(difference(actual[i], expected_grads[i]) < bound(dtype));
}

TEST_CASE("rms_norm supports a non-contiguous slice of columns") {
  const at::Tensor x = normal({2, 40, 30}, 6).requires_grad_();
  const at::Tensor w = normal({20}, 7).requires_grad_();
  const at::Tensor slice = x.narrow(2, 0, 20);
  CHECK(difference(dsv3::rms_norm(slice, w, 1e-6), rms_formula(slice, w, 1e-6)) < 1e-12);
  const auto actual = gradients(dsv3::rms_norm(slice, w, 1e-6), {x, w});
  const auto expected_grads = gradients(rms_formula(slice, w, 1e-6), {x, w});
  for (int i = 0; i < 2; ++i) CHECK(difference(actual[i], expected_grads[i]) < 1e-12);
}

TEST_CASE("rms_norm is bit-identical for any number of threads") {
  const at::Tensor x = normal({3, 777, 96}, 8, at::kFloat).requires_grad_();
  const at::Tensor w = normal({96}, 9, at::kFloat).requires_grad_();
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const auto one = gradients(dsv3::rms_norm(x, w, 1e-6), {x, w});
  at::set_num_threads(3);
  const auto three = gradients(dsv3::rms_norm(x, w, 1e-6), {x, w});
  at::set_num_threads(threads);
  for (int i = 0; i < 2; ++i) CHECK(at::equal(one[i], three[i]));
}

TEST_CASE("rotate multiplies each feature pair, as a complex number, by cos + i sin") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kDouble);
  const bool interleaved = GENERATE(true, false);
  const bool by_row = GENERATE(true, false);
  const int64_t batch = 2, length = 5, heads = 3, half = 4;
  const auto [x, wide] = leaves(normal({batch, length, heads, 2 * half}, 10), dtype);
  at::Tensor angles = normal({batch, length, half}, 11);
  if (!by_row) angles = angles[0];
  const at::Tensor y = dsv3::rotate(x, angles.cos(), angles.sin(), interleaved);
  CHECK(y.scalar_type() == dtype);

  const at::Tensor turn = at::polar(at::ones_like(angles), angles).unsqueeze(-2);
  const at::Tensor pairs = interleaved ? wide.view({batch, length, heads, half, 2})
                                       : wide.view({batch, length, heads, 2, half}).transpose(3, 4);
  const at::Tensor turned = at::view_as_real(at::view_as_complex(pairs.contiguous()) * turn);
  const at::Tensor expected =
      (interleaved ? turned : turned.transpose(3, 4)).reshape({batch, length, heads, 2 * half});
  CHECK(difference(y, expected) < bound(dtype));
  CHECK(difference(gradients(y, {x})[0], gradients(expected, {wide})[0]) < bound(dtype));
}

TEST_CASE("rotate supports strided heads") {
  const at::Tensor x = normal({2, 3, 4, 10}, 12).requires_grad_();
  const at::Tensor angles = normal({3, 3}, 13);
  const auto run = [&](const at::Tensor& part) {
    return dsv3::rotate(part, angles.cos(), angles.sin(), true);
  };
  const at::Tensor part = x.narrow(3, 4, 6);
  CHECK(at::equal(run(part), run(part.contiguous())));
  CHECK(at::equal(run(x.narrow(3, 1, 6).transpose(1, 2).contiguous().transpose(1, 2)),
                  run(x.narrow(3, 1, 6).contiguous())));
  CHECK(gradient_error([&] { return run(x.narrow(3, 4, 6)); }, {x}) < 1e-7);
}

namespace {

// Computes attention for one head and one query at a time.
at::Tensor attend_formula(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          double scale,
                          const std::function<bool(int64_t row, int64_t query, int64_t key)>& may) {
  const int64_t batch = q.size(0), queries = q.size(1), heads = q.size(2), keys = k.size(1);
  const int64_t share = heads / k.size(2);
  std::vector<at::Tensor> out;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < queries; ++t)
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<at::Tensor> weights, values;
        for (int64_t s = 0; s < keys; ++s)
          if (may(b, t, s)) {
            weights.push_back(((q[b][t][h] * k[b][s][h / share]).sum() * scale).exp());
            values.push_back(v[b][s][h / share]);
          }
        const at::Tensor w = at::stack(weights);
        out.push_back((w.unsqueeze(1) * at::stack(values)).sum(0) / w.sum());
      }
  return at::stack(out).view({batch, queries, heads, v.size(3)});
}

}  // namespace

TEST_CASE("attend computes causal attention for any head dimensions and with shared key heads") {
  const auto [key_dim, value_dim] = GENERATE(std::pair{8, 8}, std::pair{12, 8}, std::pair{4, 8});
  const int64_t key_heads = GENERATE(4, 2, 1);
  const at::Tensor q = normal({2, 6, 4, key_dim}, 20).requires_grad_();
  const at::Tensor k = normal({2, 6, key_heads, key_dim}, 21).requires_grad_();
  const at::Tensor v = normal({2, 6, key_heads, value_dim}, 22).requires_grad_();
  const dsv3::Sequence seq = test::sequence(2, 6);
  const at::Tensor expected =
      attend_formula(q, k, v, 0.3, [](int64_t, int64_t t, int64_t s) { return s <= t; });
  const at::Tensor y = dsv3::attend(q, k, v, seq, {.scale = 0.3});
  CHECK(difference(y, expected) < 1e-12);
  const auto actual = gradients(y, {q, k, v}), expected_grads = gradients(expected, {q, k, v});
  for (int i = 0; i < 3; ++i) CHECK(difference(actual[i], expected_grads[i]) < 1e-11);
  const test::ReferenceOps reference;
  CHECK(difference(dsv3::attend(q, k, v, seq, {.scale = 0.3}), expected) < 1e-12);
}

TEST_CASE("attend supports fp32 and bf16") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16);
  const at::Tensor q = normal({1, 5, 2, 8}, 20), k = normal({1, 5, 2, 8}, 21),
                   v = normal({1, 5, 2, 8}, 22);
  const at::Tensor expected =
      attend_formula(q, k, v, 0.3, [](int64_t, int64_t t, int64_t s) { return s <= t; });
  const at::Tensor y =
      dsv3::attend(q.to(dtype), k.to(dtype), v.to(dtype), test::sequence(1, 5), {.scale = 0.3});
  CHECK(y.scalar_type() == dtype);
  CHECK(difference(y, expected) < bound(dtype));
}

TEST_CASE("attend respects the mask") {
  const at::Tensor q = normal({2, 6, 2, 8}, 23), k = normal({2, 6, 2, 8}, 24),
                   v = normal({2, 6, 2, 4}, 25);
  const at::Tensor documents =
      at::tensor({0, 0, 1, 1, 1, 2, 0, 0, 0, 0, 0, 1}, at::kLong).view({2, 6});
  dsv3::Sequence seq = test::sequence(2, 6);
  const at::Tensor mask = (documents.unsqueeze(2) == documents.unsqueeze(1)).tril().unsqueeze(1);
  seq.packing =
      GENERATE_COPY(dsv3::packing_of(documents), std::make_shared<const dsv3::Packing>(mask));
  CHECK(at::equal(seq.mask(), mask));
  const auto may = [&](int64_t b, int64_t t, int64_t s) {
    return s <= t && documents[b][t].item<int64_t>() == documents[b][s].item<int64_t>();
  };
  CHECK(difference(dsv3::attend(q, k, v, seq, {.scale = 0.5}), attend_formula(q, k, v, 0.5, may)) <
        1e-12);
  const test::ReferenceOps reference;
  CHECK(difference(dsv3::attend(q, k, v, seq, {.scale = 0.5}), attend_formula(q, k, v, 0.5, may)) <
        1e-12);
}

TEST_CASE("attend with a cache treats the queries as the last tokens in the row") {
  const int64_t key_heads = GENERATE(4, 2, 1), queries = GENERATE(1, 3), keys = 7;
  dsv3::KvCache cache(1, 1, at::kDouble, at::kCPU);
  dsv3::Sequence seq = test::sequence(1, queries);
  const at::Tensor q = normal({1, queries, 4, 8}, 26), k = normal({1, keys, key_heads, 8}, 27),
                   v = normal({1, keys, key_heads, 8}, 28);
  CHECK_THROWS(dsv3::attend(q, k, v, seq, {.scale = 0.4}));  // without a cache
  seq.cache = &cache;
  const auto may = [&](int64_t, int64_t t, int64_t s) { return s <= keys - queries + t; };
  CHECK(difference(dsv3::attend(q, k, v, seq, {.scale = 0.4}), attend_formula(q, k, v, 0.4, may)) <
        1e-12);
  const test::ReferenceOps reference;
  CHECK(difference(dsv3::attend(q, k, v, seq, {.scale = 0.4}), attend_formula(q, k, v, 0.4, may)) <
        1e-12);
}

TEST_CASE("grouped_linear multiplies each group of rows by the group's matrix") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kDouble);
  const auto [x, wide] = leaves(normal({10, 6}, 30), dtype);
  const auto [w, wide_w] = leaves(normal({5, 4, 6}, 31), dtype);
  const std::vector<int64_t> sizes = {0, 3, 6, 0, 1};  // empty groups at the start and in between
  const at::Tensor ends = at::tensor(sizes, at::kLong).cumsum(0).to(at::kInt);
  std::vector<at::Tensor> parts;
  for (int64_t g = 0, row = 0; g < 5; row += sizes[g++])
    for (int64_t i = row; i < row + sizes[g]; ++i) parts.push_back(wide_w[g].mv(wide[i]));
  const at::Tensor expected = at::stack(parts);
  const auto expected_grads = gradients(expected, {wide, wide_w});
  const auto check = [&] {
    const at::Tensor y = dsv3::grouped_linear(x, w, ends);
    CHECK(difference(y, expected) < bound(dtype));
    const auto actual = gradients(y, {x, w});
    for (int i = 0; i < 2; ++i) CHECK(difference(actual[i], expected_grads[i]) < bound(dtype));
    CHECK(actual[1][3].eq(0).all().item<bool>());
  };
  check();
  const test::ReferenceOps reference;
  check();
}

TEST_CASE("grouped_linear splits large groups and is bit-identical for any number of threads") {
  const at::Tensor x = normal({1000, 12}, 33).requires_grad_(),
                   w = normal({3, 5, 12}, 34).requires_grad_();
  const at::Tensor ends = at::tensor({1, 999, 1000}, at::kInt);
  const auto expected = at::cat({x.narrow(0, 0, 1).mm(w[0].t()), x.narrow(0, 1, 998).mm(w[1].t()),
                                 x.narrow(0, 999, 1).mm(w[2].t())});
  const auto expected_grads = gradients(expected, {x, w});
  const int threads = at::get_num_threads();
  std::vector<std::vector<at::Tensor>> runs;
  for (const int count : {1, 3}) {
    at::set_num_threads(count);
    const at::Tensor y = dsv3::grouped_linear(x, w, ends);
    runs.push_back(
        {y, gradients(y, {x, w})[0], gradients(dsv3::grouped_linear(x, w, ends), {x, w})[1]});
  }
  at::set_num_threads(threads);
  CHECK(difference(runs[0][0], expected) < 1e-12);
  for (int i = 0; i < 2; ++i) CHECK(difference(runs[0][i + 1], expected_grads[i]) < 1e-12);
  for (int i = 0; i < 3; ++i) CHECK(at::equal(runs[0][i], runs[1][i]));
}

TEST_CASE("token rows are gathered by expert and expert outputs are summed per token") {
  const auto dtype = GENERATE(at::kFloat, at::kBFloat16, at::kDouble);
  const bool reference = GENERATE(false, true);
  const at::Tensor chosen = at::tensor({2, 0, 0, 3, 2, 3, 0, 2}, at::kLong).view({4, 2});
  dsv3::use_reference_ops(reference);
  const dsv3::ExpertRows rows = dsv3::sort_by_expert(chosen, 5);
  CHECK(at::equal(rows.counts, at::tensor({3, 0, 3, 2, 0}, at::kLong)));
  CHECK(at::equal(rows.ends, at::tensor({3, 3, 6, 8, 8}, at::kInt)));
  CHECK(at::equal(rows.source, at::tensor({1, 2, 6, 0, 4, 7, 3, 5}, at::kLong)));
  CHECK(at::equal(rows.row.view({-1}).index_select(0, rows.source), at::arange(8)));

  const auto [x, wide] = leaves(normal({4, 19}, 32), dtype);
  const at::Tensor gathered = dsv3::gather_rows(x, rows);
  for (int64_t i = 0; i < 8; ++i)
    CHECK(at::equal(gathered[i], x[rows.source[i].item<int64_t>() / 2]));
  const at::Tensor summed = dsv3::sum_rows(gathered * gathered, rows);
  CHECK(difference(summed, 2 * wide * wide) < bound(dtype));
  CHECK(difference(gradients(summed, {x})[0], gradients(2 * wide * wide, {wide})[0]) <
        bound(dtype));
  dsv3::use_reference_ops(false);
}

TEST_CASE("operator gradients match float64 central differences") {
  const at::Tensor x = normal({3, 4, 12}, 40).requires_grad_(),
                   w = normal({12}, 41).requires_grad_();
  const at::Tensor row_weights = normal({12}, 42).requires_grad_();
  CHECK(gradient_error([&] { return dsv3::rms_norm(x, w, 1e-3); }, {x, w}) < 1e-7);
  CHECK(gradient_error([&] { return dsv3::swiglu(x, row_weights); }, {x, row_weights}) < 1e-7);
}

TEST_CASE("reference operators match the fused ones") {
  const at::Tensor x = normal({2, 9, 24}, 43, at::kFloat), w = normal({24}, 44, at::kFloat);
  const at::Tensor row_weights = normal({18}, 45, at::kFloat), angles = normal({2, 9, 3}, 46);
  const auto run = [&] {
    const at::Tensor heads = x.view({2, 9, 4, 6});
    return std::vector<at::Tensor>{dsv3::rms_norm(x, w, 1e-6), dsv3::swiglu(x),
                                   dsv3::swiglu(x, row_weights),
                                   dsv3::rotate(heads, angles.cos(), angles.sin(), true),
                                   dsv3::rotate(heads, angles.cos(), angles.sin(), false)};
  };
  const auto fused = run();
  const test::ReferenceOps reference;
  const auto plain = run();
  for (size_t i = 0; i < fused.size(); ++i) CHECK(difference(fused[i], plain[i]) < 2e-6);
}
