// Drafts tokens with a model's MTP modules during generation.
#pragma once

#include <ATen/ATen.h>

#include <dsv3/runtime/model.h>

namespace dsv3 {

/// Runs MTP modules and keeps their inputs between rounds of generation. Module k computes the
/// logits of token t + k + 2 from token t + k + 1 and the hidden state of module k - 1 (of the main
/// model for k = 0) at position t. Its own hidden state at position t is final once token t + k + 1
/// has been accepted.
class Drafter {
 public:
  /// Keeps references to `model` and `caches`.
  Drafter(Model& model, std::vector<KvCache>& caches, size_t layers, int64_t rows)
      : model_(model),
        caches_(caches),
        layers_(layers),
        depth_(caches.size() - layers),
        inputs_(size_t(rows), std::vector<Input>(depth_)) {}
  size_t depth() const { return depth_; }

  /// Appends the main model's hidden states [n, D] for the next positions in a row.
  void add(size_t row, const at::Tensor& hidden) { inputs_[row][0].append(hidden); }
  /// Runs a module on the new positions of `rows` and returns the logits [.., V] for the last
  /// position of each row, on the CPU. `texts` contains the tokens of every cache row. Ignores the
  /// last `without` tokens of each row.
  struct Drafted {
    std::vector<size_t> ran;  ///< rows with new positions
    at::Tensor logits;
  };
  Drafted run(size_t module, const std::vector<size_t>& rows,
              const std::vector<std::vector<int32_t>>& texts, int64_t without = 0) {
    const KvCache& cache = caches_[layers_ + module];
    NewTokens added{{}, std::vector<int64_t>(texts.size()), {}};
    std::vector<at::Tensor> hidden;
    Drafted result;
    for (size_t row = 0; row < texts.size(); ++row) {
      if (std::find(rows.begin(), rows.end(), row) == rows.end()) continue;
      const Input& input = inputs_[row][module];
      const int64_t begin = cache.lengths()[row], ahead = int64_t(module) + 1;
      const int64_t known = int64_t(texts[row].size()) - without;
      const int64_t end = std::min(input.end(), known - ahead);
      if (end <= begin) continue;
      added.counts[row] = end - begin;
      hidden.push_back(input.hidden.narrow(0, begin - input.first, end - begin));
      const auto first = texts[row].begin() + begin + ahead;
      added.tokens.insert(added.tokens.end(), first, first + (end - begin));
      added.logits_at.push_back(static_cast<int64_t>(added.tokens.size()) - 1);
      result.ran.push_back(row);
    }
    if (result.ran.empty()) return result;
    const Extended out = model_.extend_mtp(module, added, at::cat(hidden), caches_);
    result.logits = out.logits.to(at::kCPU, at::kFloat).contiguous();
    int64_t begin = 0;
    for (const size_t row : result.ran) {
      if (module + 1 < depth_)
        inputs_[row][module + 1].append(out.hidden.narrow(0, begin, added.counts[row]));
      begin += added.counts[row];
    }
    return result;
  }
  /// Discards everything computed from the tokens at index `tokens` and later in a row. The main
  /// model's hidden states are final for the first `positions` positions.
  void settle(size_t row, int64_t tokens, int64_t positions) {
    int64_t known = positions;  // number of positions at which the module's input is final
    for (size_t k = 0; k < depth_; ++k) {
      KvCache& cache = caches_[layers_ + k];
      const int64_t final = std::max<int64_t>(tokens - int64_t(k) - 1, 0);
      const int64_t length = std::min(cache.lengths()[row], final);
      if (length < cache.lengths()[row]) cache.truncate(int64_t(row), length);
      inputs_[row][k].crop(length, known);
      known = length;
    }
  }

  void clear(size_t row) {
    for (size_t k = 0; k < depth_; ++k) {
      caches_[layers_ + k].truncate(int64_t(row), 0);
      inputs_[row][k] = {};
    }
  }

 private:
  /// A module's input hidden states in one row, for positions [first, first + hidden.size(0)).
  struct Input {
    int64_t first = 0;
    at::Tensor hidden;
    int64_t end() const { return first + (hidden.defined() ? hidden.size(0) : 0); }
    void append(const at::Tensor& more) {
      hidden = hidden.defined() && hidden.size(0) > 0 ? at::cat({hidden, more}) : more;
    }
    void crop(int64_t begin, int64_t last) {
      if (!hidden.defined()) return;
      begin = std::clamp(begin, first, end());
      last = std::clamp(last, begin, end());
      // Clone the slice, so that the rest of the memory can be freed.
      hidden = hidden.narrow(0, begin - first, last - begin).clone();
      first = begin;
    }
  };

  Model& model_;
  std::vector<KvCache>& caches_;
  size_t layers_, depth_;
  std::vector<std::vector<Input>> inputs_;  // [row][module]
};

}  // namespace dsv3
