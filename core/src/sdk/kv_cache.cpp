#include <numeric>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

// The number of tokens by which a full row grows. Copying the row every 64 tokens costs little
// compared with attention, which reads it for every token.
constexpr int64_t kGrowth = 64;

}  // namespace

KvCache::KvCache(int64_t rows, int64_t values, at::ScalarType dtype, at::Device device)
    : lengths_(static_cast<size_t>(rows), 0), counts_(lengths_) {
  for (int64_t row = 0; row < rows; ++row)
    rows_.push_back(at::empty({0, values}, at::TensorOptions().dtype(dtype).device(device)));
}

void KvCache::expect(const std::vector<int64_t>& counts) {
  TORCH_CHECK(counts.size() == rows_.size(), "KvCache: ", counts.size(), " new-token counts for ",
              rows_.size(), " rows");
  counts_ = counts;
}

void KvCache::append(const at::Tensor& values) {
  const at::NoGradGuard no_grad;
  const int64_t total = std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
  TORCH_CHECK(values.dim() == 3 && values.size(0) == 1 && values.size(1) == total &&
                  (rows_.empty() || values.size(2) == rows_[0].size(1)),
              "KvCache: values ", values.sizes(), " do not match a cache that expects ", total,
              " new tokens of ", rows_.empty() ? 0 : rows_[0].size(1), " values");
  fresh_ = true;
  int64_t begin = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    const int64_t count = counts_[i], held = lengths_[i], needed = held + count;
    if (count == 0) continue;
    if (held > 0) fresh_ = false;
    at::Tensor& row = rows_[i];
    if (needed > row.size(0)) {
      const int64_t capacity = held == 0 ? needed : std::max(needed, row.size(0) + kGrowth);
      at::Tensor grown = at::empty({capacity, row.size(1)}, row.options());
      grown.narrow(0, 0, held).copy_(row.narrow(0, 0, held));
      row = grown;
    }
    row.narrow(0, held, count).copy_(values[0].narrow(0, begin, count));
    lengths_[i] = needed;
    begin += count;
  }
}

at::Tensor KvCache::each_row(const at::Tensor& q, const RowFunction& attend) const {
  std::vector<at::Tensor> results;
  int64_t begin = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (counts_[i] == 0) continue;
    const at::Tensor all = rows_[i].narrow(0, 0, lengths_[i]).unsqueeze(0).to(q.scalar_type());
    results.push_back(attend(q.narrow(1, begin, counts_[i]), all));
    begin += counts_[i];
  }
  return results.size() == 1 ? results[0] : at::cat(results, 1);
}

void KvCache::truncate(int64_t row, int64_t length) {
  const size_t i = static_cast<size_t>(row);
  if (row < 0 || i >= rows_.size() || length < 0 || length > lengths_[i])
    throw Error("KvCache::truncate: row " + std::to_string(row) + " cannot be truncated to " +
                std::to_string(length) + " tokens: invalid row or length");
  lengths_[i] = length;
  if (length == 0) rows_[i] = at::empty({0, rows_[i].size(1)}, rows_[i].options());
}

int64_t KvCache::bytes() const {
  int64_t bytes = 0;
  for (size_t i = 0; i < rows_.size(); ++i)
    bytes += lengths_[i] * rows_[i].size(1) * static_cast<int64_t>(rows_[i].element_size());
  return bytes;
}

int64_t KvCache::reserved_bytes() const {
  int64_t bytes = 0;
  for (const at::Tensor& row : rows_) bytes += static_cast<int64_t>(row.nbytes());
  return bytes;
}

}  // namespace dsv3
