// Interface for data plugins: an endless (training) or finite (validation) stream of packed rows.
#pragma once

#include <memory>

#include <ATen/core/Tensor.h>
#include <nlohmann/json_fwd.hpp>

#include <dsv3/sdk/pluggable.h>
#include <dsv3/sdk/tokenizer.h>

namespace dsv3 {

enum class Split { train = 1, validation };

/// One micro-batch. `tokens` is undefined after the end of a validation stream.
struct Batch {
  /// int64 [B, T + 1], on the host; a row's last token is repeated as the first token of the row in
  /// which the document continues.
  at::Tensor tokens;
  /// int64 [B, T + 1]. Each document has a different id; -1 = padding. Undefined = one document per
  /// row.
  at::Tensor document_ids;
};

/// What a data plugin receives besides its options. The global order of rows does not depend on
/// rank, world or micro_batch: the k-th call of next() on rank r, counted from 0, returns the rows
/// that start at index (k * world + r) * micro_batch.
struct DataContext {
  Split split = Split::train;
  int64_t rank = 0, world = 1;
  int64_t micro_batch = 1;      ///< B, number of rows that next() returns
  int64_t sequence = 0;         ///< T
  uint64_t seed = 0;            ///< affects only the order of the documents
  int64_t vocab = 0;            ///< token ids must be below this
  double validation_share = 0;  ///< fraction of documents in the held-out set, see held_out()
  std::shared_ptr<const Tokenizer> tokenizer;  ///< null if the experiment has no tokenizer
};

class Data : public Pluggable {
 public:
  ~Data() override;
  virtual Batch next() = 0;
  /// Returns the stream position after the last next(), from which a run can resume with any world
  /// size and micro-batch size. It is small and contains no tokens.
  virtual nlohmann::json state() const = 0;
  virtual void load_state(const nlohmann::json& state) = 0;
};

}  // namespace dsv3
