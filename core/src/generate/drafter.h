// Drafts of a model's MTP modules during generation.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

#include <dsv3/runtime/model.h>

namespace dsv3 {

/// Runs MTP modules and keeps their inputs from one round to the next. Module k computes the logits
/// of token t + k + 2 from token t + k + 1 and the hidden state of module k - 1 (of the main model
/// for k = 0) at position t. Its own hidden state at position t is final once token t + k + 1 is.
class Drafter {
 public:
  /// Keeps references to `model` and `caches`.
  Drafter(Model& model, std::vector<KvCache>& caches, size_t layers, int64_t rows);
  size_t depth() const { return depth_; }

  /// Adds the main model's hidden states [n, D] of a row's next positions.
  void add(size_t row, const at::Tensor& hidden);
  /// Runs a module on all new positions of `rows` whose tokens are in `texts` (one per row of the
  /// caches), except for the last `without` tokens of each. Returns the logits of the last
  /// position,
  /// [.., V] on the CPU, one for each row in `ran`.
  struct Drafted {
    std::vector<size_t> ran;  ///< rows that had such positions
    at::Tensor logits;
  };
  Drafted run(size_t module, const std::vector<size_t>& rows,
              const std::vector<std::vector<int32_t>>& texts, int64_t without = 0);
  /// Drops what depends on tokens of a row from `tokens` on; the main model holds `positions`.
  void settle(size_t row, int64_t tokens, int64_t positions);
  void clear(size_t row);

 private:
  /// A module's input at positions [first, first + rows of hidden) of a row.
  struct Input {
    int64_t first = 0;
    at::Tensor hidden;
    int64_t end() const { return first + (hidden.defined() ? hidden.size(0) : 0); }
    void append(const at::Tensor& more);
    void crop(int64_t begin, int64_t end);
  };

  Model& model_;
  std::vector<KvCache>& caches_;
  size_t layers_, depth_;
  std::vector<std::vector<Input>> inputs_;  // [row][module]
};

}  // namespace dsv3
