// Helpers for data tests: in-memory documents, and reassembly of documents from packed rows.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/error.h>

/// Documents with the given lengths. Token `offset` of document `index` is 1000 * (index + 1) +
/// offset, so every token identifies its document and offset.
class NumberedDocuments final : public dsv3::Documents {
 public:
  explicit NumberedDocuments(std::vector<int64_t> lengths, std::string fingerprint = "numbers",
                             std::vector<uint64_t> hashes = {})
      : lengths_(std::move(lengths)),
        fingerprint_(std::move(fingerprint)),
        hashes_(std::move(hashes)) {}
  int64_t count() const override { return std::ssize(lengths_); }
  int64_t length(int64_t document) override { return lengths_.at(size_t(document)); }
  void read(int64_t document, int64_t offset, std::span<int64_t> out) override {
    if (offset + std::ssize(out) > length(document))
      throw dsv3::Error("read past the end of the document");
    for (int64_t& token : out) token = 1000 * (document + 1) + offset++;
  }
  std::string fingerprint() const override { return fingerprint_; }
  uint64_t hash(int64_t document) const override {
    return hashes_.empty() ? Documents::hash(document) : hashes_.at(size_t(document));
  }
  std::string source() const override { return "numbers"; }

 private:
  std::vector<int64_t> lengths_;
  std::string fingerprint_;
  std::vector<uint64_t> hashes_;
};

inline dsv3::DataContext stream_context(dsv3::Split split, int64_t micro_batch, int64_t sequence) {
  dsv3::DataContext context;
  context.split = split;
  context.micro_batch = micro_batch;
  context.sequence = sequence;
  context.seed = 7;
  context.vocab = 1'000'000;
  context.validation_share = 0.5;
  return context;
}

/// A row's tokens followed by its document ids.
using Row = std::vector<int64_t>;

/// Appends the rows of `batch`. Returns false at the end of the stream.
inline bool append_rows(const dsv3::Batch& batch, std::vector<Row>& rows) {
  if (!batch.tokens.defined()) return false;
  for (int64_t i = 0; i < batch.tokens.size(0); ++i) {
    const at::Tensor row = at::cat({batch.tokens[i], batch.document_ids[i]}).contiguous();
    rows.emplace_back(row.const_data_ptr<int64_t>(), row.const_data_ptr<int64_t>() + row.numel());
  }
  return true;
}

/// Returns the rows of the next `calls` batches, or fewer at the end of the stream.
inline std::vector<Row> read_rows(dsv3::Data& data, int64_t calls) {
  std::vector<Row> rows;
  for (int64_t call = 0; call < calls && append_rows(data.next(), rows); ++call) continue;
  return rows;
}

/// Restores the documents from consecutive rows: joins the tokens, removes the padding, and splits
/// where the document id changes.
inline std::vector<std::vector<int64_t>> documents_of(const std::vector<Row>& rows) {
  std::vector<std::vector<int64_t>> documents;
  int64_t previous_id = -1;
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t length = rows[i].size() / 2;
    // The last token of a row is also the first token of the next row.
    for (size_t t = 0; t < length - (i + 1 < rows.size() ? 1 : 0); ++t) {
      const int64_t id = rows[i][length + t];
      if (id < 0) continue;
      if (id != previous_id) documents.emplace_back();
      documents.back().push_back(rows[i][t]);
      previous_id = id;
    }
  }
  return documents;
}
