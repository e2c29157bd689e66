// Interface for attention plugins, and the micro-batch that the core passes to every layer.
#pragma once

#include <map>
#include <optional>

#include <dsv3/sdk/component.h>

namespace dsv3 {

/// One layer's key-value cache during generation. It has one row for each sequence in the batch,
/// and each row is as long as its sequence, or as the layer's window. Rows share no storage and
/// contain no padding.
class KvCache {
 public:
  /// `values` is the number of cached values per token, see Attention::cache_values_per_token().
  /// `window` is Attention::cache_window(). The capacity grows as needed.
  KvCache(int64_t rows, int64_t values, at::ScalarType dtype, at::Device device,
          std::optional<int64_t> window = {});

  // Called by layers.
  /// Appends `values` [1, N, C] for the new tokens in this forward pass, concatenated row by row.
  /// With a window, first drops the tokens that are outside of every new token's window.
  void append(const at::Tensor& values);
  /// Calls `attend` for each row that has new tokens. Its arguments are the row's slice [1, T, ..]
  /// of q [1, N, ..] and the row's cached values [1, S, C], S >= T, in q's dtype. With a window, S
  /// is at most T + window - 1. Returns the concatenated results [1, N, ..].
  using RowFunction = std::function<at::Tensor(const at::Tensor& q, const at::Tensor& all)>;
  at::Tensor each_row(const at::Tensor& q, const RowFunction& attend) const;
  /// Whether all rows were empty before the last append().
  bool fresh() const { return fresh_; }

  // For the code that runs the layers.
  /// Sets the number of new tokens in each row, possibly 0. Call this before each forward pass.
  void expect(const std::vector<int64_t>& counts);
  /// Number of tokens in each row, including those that were dropped.
  const std::vector<int64_t>& lengths() const { return lengths_; }
  /// Truncates a row to `length` tokens, e.g. after draft tokens were rejected. A `length` of 0
  /// frees the row's memory. Throws dsv3::Error if the row has fewer tokens, or if the next token's
  /// window contains dropped tokens. The last append() can always be undone.
  void truncate(int64_t row, int64_t length);
  /// Size of the cached values in bytes: cached tokens * C * element size.
  int64_t bytes() const;
  /// Allocated bytes: bytes(), plus spare capacity for fewer than 64 tokens per row, plus memory
  /// that truncate() did not free.
  int64_t reserved_bytes() const;

 private:
  struct Row {
    at::Tensor storage;             // [capacity, C]
    int64_t first = 0, cached = 0;  // the cached tokens are storage[first .. first + cached)
  };
  // Makes room for `count` new tokens and returns their place in the row's storage.
  at::Tensor place(Row& row, int64_t count);

  std::vector<Row> rows_;
  std::vector<int64_t> lengths_, counts_;
  std::optional<int64_t> window_;
  bool fresh_ = true;
};

class Packing;

/// Tensors that layers pass to later layers in the same forward pass, e.g. the first layer's
/// attention values in value residual learning (Zhou et al., arXiv 2410.17897). Activation
/// checkpointing and strategies treat them as outputs of one layer and inputs of the next ones.
class SharedValues {
 public:
  /// Makes `value` available to later layers. Replaces an earlier value of the same name.
  void set(const std::string& name, at::Tensor value) { values_[name] = std::move(value); }
  /// Returns a value that an earlier layer has set; undefined if there is none.
  at::Tensor find(const std::string& name) const {
    const auto found = values_.find(name);
    return found == values_.end() ? at::Tensor() : found->second;
  }
  const std::map<std::string, at::Tensor>& all() const { return values_; }

 private:
  std::map<std::string, at::Tensor> values_;
};

/// What layers receive with a micro-batch besides its hidden states. Cheap to copy.
struct Sequence {
  at::Tensor positions;     ///< int64 [B, T]; positions restart at 0 in each document
  at::Tensor document_ids;  ///< int64 [B, T]; undefined = one document per row
  /// Documents in the same row; null = plain causal attention.
  std::shared_ptr<const Packing> packing;
  /// Set during generation. Then B is 1, and T is the number of new tokens in all rows, which are
  /// concatenated. `positions` continue after each row's cached tokens.
  KvCache* cache = nullptr;
  bool training = false;   ///< false in validation and generation
  bool recompute = false;  ///< true in the second forward pass of a checkpointed block, which must
                           ///< not count tokens
  double aux_scale = 0;    ///< 1 / number of sequences in the optimizer step (all micro-batches,
                           ///< all ranks)
  StepKey key = {};        ///< for random numbers in training
  Metrics metrics = {};    ///< for numbers that the layer reports
  /// Values of earlier layers; never null when the core calls a layer.
  std::shared_ptr<SharedValues> shared = {};

  /// Returns a bool mask [B, 1, T, T], true = may attend; undefined = plain causal mask.
  /// dsv3::attend avoids building it if a kernel can use the documents' boundaries.
  at::Tensor mask() const;
};

class Attention : public Component {
 public:
  using Component::Component;
  ~Attention() override;
  /// x and the result are [B, T, D].
  virtual at::Tensor forward(const at::Tensor& x, const Sequence& seq) = 0;
  /// C, the number of values per token in this layer's KvCache.
  virtual int64_t cache_values_per_token() const = 0;
  /// The window in tokens if this layer only attends to a window, so that its KvCache can drop
  /// older tokens. See AttendOptions::window. Unset = the cache keeps all tokens.
  virtual std::optional<int64_t> cache_window() const { return {}; }
};

}  // namespace dsv3
