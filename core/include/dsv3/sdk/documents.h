// Helpers for data plugins that read documents: the validation split, document order, and packing
// into rows. A plugin implements Documents and passes it to PackedStream, which is a Data.
#pragma once

#include <initializer_list>

#include <dsv3/sdk/data.h>

namespace dsv3 {

/// Returns 64 random bits that depend only on `words` (a counter-based generator).
uint64_t random_bits(std::initializer_list<uint64_t> words);

/// Hash of a document's bytes, identical on every machine and in every version.
uint64_t document_hash(std::string_view bytes);

/// Whether a document is in the held-out set. Depends only on its hash, so adding or removing other
/// documents never moves it, and a larger validation share selects a superset.
bool held_out(uint64_t hash, double validation_share);

/// A random permutation of 0 .. count-1 for (seed, epoch), computed element by element.
class Permutation {
 public:
  Permutation(uint64_t count, uint64_t seed, uint64_t epoch);
  uint64_t operator()(uint64_t position) const;

 private:
  uint64_t count_, half_bits_, key_;
};

/// The documents in one split, by index. Not thread-safe.
class Documents {
 public:
  virtual ~Documents();
  virtual int64_t count() const = 0;
  /// Number of tokens in a document, including its end-of-text id.
  virtual int64_t length(int64_t document) = 0;
  /// Copies tokens offset .. offset + out.size() of a document.
  virtual void read(int64_t document, int64_t offset, std::span<int64_t> out) = 0;
  /// Changes if any document changes. Compared with the saved fingerprint when a stream is resumed.
  virtual std::string fingerprint() const = 0;
  /// Where the documents come from, for error messages.
  virtual std::string source() const = 0;
};

/// Documents packed without gaps: row n of the token stream s is s[n T .. n T + T], so a row's last
/// token is the next row's first. Training is endless, with a new permutation of the documents from
/// (seed, epoch) in each epoch. Validation is one pass in a fixed order that depends only on the
/// number of documents. The end is padded with token 0 and document id -1, by whole rows if
/// necessary, so that every rank returns the same number of batches.
class PackedStream : public Data {
 public:
  /// Throws dsv3::Error (ExitCode::data) with the token counts if the text does not fill one
  /// training row or contains no validation target. With a validation share of 0, the validation
  /// stream is empty.
  PackedStream(std::shared_ptr<Documents> documents, const DataContext& context);
  Batch next() override;
  nlohmann::json state() const override;
  void load_state(const nlohmann::json& state) override;

 private:
  struct Cursor {
    int64_t epoch = 0, position = 0, offset = 0;  // `position` is an index in the epoch's document
                                                  // order
  };
  bool training() const { return context_.split == Split::train; }
  int64_t document_at(const Cursor& at);
  int64_t walk(Cursor& at, int64_t count, int64_t* tokens, int64_t* ids);
  void check_enough();

  std::shared_ptr<Documents> documents_;
  DataContext context_;
  Cursor cursor_;     // start of the first row that no rank has returned
  int64_t rows_ = 0;  // number of rows returned by all ranks together
  int64_t order_epoch_ = 0;
  Permutation order_;
};

}  // namespace dsv3
