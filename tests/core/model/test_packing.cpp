#include <vector>

#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include <dsv3/runtime/model.h>
#include <dsv3/sdk/packing.h>

namespace dsv3 {
namespace {

using Rows = std::vector<std::vector<int64_t>>;

at::Tensor tensor_of(const Rows& rows) {
  at::Tensor result = at::empty({int64_t(rows.size()), int64_t(rows[0].size())}, at::kLong);
  for (size_t b = 0; b < rows.size(); ++b)
    for (size_t t = 0; t < rows[b].size(); ++t) result[b][t] = rows[b][t];
  return result;
}

Rows rows_of(const at::Tensor& tensor) {
  Rows rows(tensor.size(0), std::vector<int64_t>(tensor.size(1)));
  for (size_t b = 0; b < rows.size(); ++b)
    for (size_t t = 0; t < rows[b].size(); ++t) rows[b][t] = tensor[b][t].item<int64_t>();
  return rows;
}

/// Whether all ids from position a to position b are the same.
bool same_document(const std::vector<int64_t>& ids, size_t a, size_t b) {
  for (size_t t = std::min(a, b); t < std::max(a, b); ++t)
    if (ids[t] != ids[t + 1]) return false;
  return true;
}

// Document ids with one-token documents, a repeated id, and padding at the end and in the middle of
// a row.
const Rows some_ids = {{3, 3, 3, 3, 3, 3},    {0, 1, 1, 2, 2, 2},       {5, 5, 6, 5, 5, 7},
                       {4, 4, 4, -1, -1, -1}, {-1, -1, -1, -1, -1, -1}, {8, -1, 9, 9, 9, 9}};

TEST_CASE("position ids restart at 0 in each document") {
  const Rows actual = rows_of(positions_of(tensor_of(some_ids)));
  for (size_t b = 0; b < some_ids.size(); ++b) {
    int64_t position = 0;
    for (size_t t = 0; t < some_ids[b].size(); ++t) {
      position = t > 0 && some_ids[b][t] == some_ids[b][t - 1] ? position + 1 : 0;
      CHECK(actual[b][t] == position);
    }
  }
}

TEST_CASE("a query attends only to its document and not to later positions") {
  const at::Tensor mask = packing_of(tensor_of(some_ids))->mask();
  REQUIRE(mask.sizes() == at::IntArrayRef({6, 1, 6, 6}));
  REQUIRE(mask.scalar_type() == at::kBool);
  for (size_t b = 0; b < some_ids.size(); ++b)
    for (size_t q = 0; q < 6; ++q)
      for (size_t k = 0; k < 6; ++k)
        CHECK(mask[b][0][q][k].item<bool>() == (k <= q && same_document(some_ids[b], q, k)));
}

TEST_CASE("every token knows where its document starts") {
  const Rows actual = rows_of(packing_of(tensor_of(some_ids))->starts());
  for (size_t b = 0; b < some_ids.size(); ++b)
    for (size_t t = 0; t < some_ids[b].size(); ++t) {
      size_t start = t;
      while (start > 0 && some_ids[b][start - 1] == some_ids[b][t]) --start;
      CHECK(actual[b][t] == int64_t(start));
    }
  CHECK_FALSE(Packing(at::ones({1, 1, 3, 3}, at::kBool)).starts().defined());
}

TEST_CASE("rows that contain only one document need no packing") {
  CHECK(packing_of(tensor_of({{1, 1, 1}, {2, 2, 2}})) == nullptr);
  const auto packing =
      packing_of(tensor_of({{1, 1, 1}, {1, 1, 3}}));  // document 1 does not continue in row 1
  CHECK(at::equal(packing->boundaries(), at::tensor({0, 3, 5, 6}, at::kInt)));
  CHECK(packing->longest() == 3);
}

TEST_CASE("targets never cross a document boundary, padding or the end of the row") {
  at::Tensor tokens = at::arange(36, at::kLong).view({6, 6}) + 100;
  for (int64_t depth = 0; depth < 7; ++depth) {
    const Rows actual = rows_of(shifted_targets(tokens, tensor_of(some_ids), depth));
    const Rows whole = rows_of(shifted_targets(tokens, {}, depth));
    for (size_t b = 0; b < 6; ++b) {
      REQUIRE(actual[b].size() == 5);
      for (size_t t = 0; t < 5; ++t) {
        const size_t target = t + 1 + size_t(depth);
        const bool inside = target < 6;
        const int64_t token = inside ? tokens[b][target].item<int64_t>() : -1;
        CHECK(whole[b][t] == token);
        const bool valid =
            inside && some_ids[b][target] >= 0 && same_document(some_ids[b], t, target);
        CHECK(actual[b][t] == (valid ? token : -1));
      }
    }
  }
}

TEST_CASE("targets are counted for the main model and each MTP depth") {
  Batch batch;
  batch.tokens = at::zeros({2, 6}, at::kLong);
  CHECK(count_targets(batch, 2) == std::vector<int64_t>{10, 8, 6});
  batch.document_ids = tensor_of({{0, 0, 0, 1, 1, 1}, {2, 2, -1, -1, -1, -1}});
  CHECK(count_targets(batch, 2) == std::vector<int64_t>{5, 2, 0});
}

}  // namespace
}  // namespace dsv3
