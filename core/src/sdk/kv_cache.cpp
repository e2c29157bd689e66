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

KvCache::KvCache(int64_t rows, int64_t values, at::ScalarType dtype, at::Device device,
                 std::optional<int64_t> window)
    : rows_(static_cast<size_t>(rows)),
      lengths_(static_cast<size_t>(rows), 0),
      counts_(lengths_),
      window_(window) {
  TORCH_CHECK(!window || *window >= 1, "KvCache: the window is ", *window,
              " tokens; it must be at least 1");
  for (Row& row : rows_)
    row.storage = at::empty({0, values}, at::TensorOptions().dtype(dtype).device(device));
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
                  (rows_.empty() || values.size(2) == rows_[0].storage.size(1)),
              "KvCache: values ", values.sizes(), " do not match a cache that expects ", total,
              " new tokens of ", rows_.empty() ? 0 : rows_[0].storage.size(1), " values");
  fresh_ = true;
  int64_t begin = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (counts_[i] == 0) continue;
    if (lengths_[i] > 0) fresh_ = false;
    place(rows_[i], counts_[i]).copy_(values[0].narrow(0, begin, counts_[i]));
    lengths_[i] += counts_[i];
    begin += counts_[i];
  }
}

// Drops tokens here and not after the last append, because a truncation in between needs them.
at::Tensor KvCache::place(Row& row, int64_t count) {
  const int64_t kept = window_ ? std::min(row.cached, *window_ - 1) : row.cached;
  row.first = kept == 0 ? 0 : row.first + row.cached - kept;
  row.cached = kept + count;
  if (row.first + row.cached > row.storage.size(0)) {
    const int64_t capacity = kept == 0 ? count : row.cached + kGrowth - 1;
    const at::Tensor grown = at::empty({capacity, row.storage.size(1)}, row.storage.options());
    grown.narrow(0, 0, kept).copy_(row.storage.narrow(0, row.first, kept));
    row.storage = grown;
    row.first = 0;
  }
  return row.storage.narrow(0, row.first + kept, count);
}

at::Tensor KvCache::each_row(const at::Tensor& q, const RowFunction& attend) const {
  std::vector<at::Tensor> results;
  int64_t begin = 0;
  for (size_t i = 0; i < rows_.size(); ++i) {
    if (counts_[i] == 0) continue;
    const Row& row = rows_[i];
    const at::Tensor cached =
        row.storage.narrow(0, row.first, row.cached).unsqueeze(0).to(q.scalar_type());
    results.push_back(attend(q.narrow(1, begin, counts_[i]), cached));
    begin += counts_[i];
  }
  return results.size() == 1 ? results[0] : at::cat(results, 1);
}

void KvCache::truncate(int64_t index, int64_t length) {
  const size_t i = static_cast<size_t>(index);
  const auto reject = [&](const std::string& why) {
    throw Error("KvCache::truncate: row " + std::to_string(index) + " cannot be truncated to " +
                std::to_string(length) + " tokens: " + why);
  };
  if (index < 0 || i >= rows_.size() || length < 0 || length > lengths_[i])
    reject("invalid row or length");
  Row& row = rows_[i];
  const int64_t cached = row.cached - (lengths_[i] - length);
  if (length == 0) {
    row = {at::empty({0, row.storage.size(1)}, row.storage.options())};
  } else {
    if (cached < std::min(length, window_.value_or(length + 1) - 1))
      reject("the cache keeps only the tokens in the window of " + std::to_string(*window_) +
             " tokens");
    row.cached = cached;
  }
  lengths_[i] = length;
}

int64_t KvCache::bytes() const {
  int64_t bytes = 0;
  for (const Row& row : rows_)
    bytes += row.cached * row.storage.size(1) * static_cast<int64_t>(row.storage.element_size());
  return bytes;
}

int64_t KvCache::reserved_bytes() const {
  int64_t bytes = 0;
  for (const Row& row : rows_) bytes += static_cast<int64_t>(row.storage.nbytes());
  return bytes;
}

}  // namespace dsv3
