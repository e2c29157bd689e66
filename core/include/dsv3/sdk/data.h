// Interface of data plugins: an endless (training) or finite (validation) stream of packed rows.
#pragma once

#include <memory>
#include <string>

#include <ATen/core/Tensor.h>
#include <nlohmann/json_fwd.hpp>

#include <dsv3/sdk/tokenizer.h>

namespace dsv3 {

enum class Split { train = 1, validation };

/// One micro-batch. Undefined `tokens` = the (validation) stream has ended.
struct Batch {
  at::Tensor tokens;  ///< int64 [B, T + 1], on the host; row k+1 of a document starts at row k's
                      ///< last token
  at::Tensor document_ids;  ///< int64 [B, T + 1]; differs between documents, -1 = padding;
                            ///< undefined: one a row
};

/// What a data plugin is built with, next to its options. The global stream of rows does not depend
/// on rank, world, micro_batch: call k of rank r returns rows (k * world + r) * micro_batch, ... of
/// it.
struct DataContext {
  Split split = Split::train;
  int64_t rank = 0, world = 1;
  int64_t micro_batch = 1;  ///< B, rows a call
  int64_t sequence = 0;     ///< T
  uint64_t seed = 0;        ///< order of the documents; nothing else
  int64_t vocab = 0;        ///< ids must be below this
  double validation_share =
      0;  ///< share of the documents held out, chosen by a stable hash of the document
  std::shared_ptr<const Tokenizer> tokenizer;  ///< null when the experiment names none
};

class Data {
 public:
  virtual ~Data();
  virtual Batch next() = 0;
  /// Where the stream stands after the last next(): enough to go on from, on any world size and
  /// micro batch. Small (no tokens in it).
  virtual nlohmann::json state() const = 0;
  virtual void load_state(const nlohmann::json& state) = 0;
};

}  // namespace dsv3
