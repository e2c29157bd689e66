// Helpers for data plugins that read documents: the validation split, document order, and packing
// into rows. A plugin implements Documents and passes it to PackedStream, which implements Data.
#pragma once

#include <initializer_list>

#include <dsv3/sdk/data.h>

namespace dsv3 {

/// Returns 64 pseudo-random bits that depend only on `words` (a counter-based generator).
uint64_t random_bits(std::initializer_list<uint64_t> words);

/// Returns a hash of a document's bytes, which is the same on every machine and in every version.
uint64_t document_hash(std::string_view bytes);

/// Whether a document with this hash is in the held-out set. Adding or removing other documents
/// never changes that, and a larger held-out fraction selects a superset.
bool held_out(uint64_t hash, double validation_share);

/// A random permutation of 0 .. count-1 that depends only on seed and epoch. Each element is
/// computed on demand.
class Permutation {
 public:
  Permutation(uint64_t count, uint64_t seed, uint64_t epoch);
  uint64_t operator()(uint64_t position) const;

 private:
  uint64_t count_, half_bits_, key_;
};

/// Interface to the documents in one split, by index. Not thread-safe.
class Documents {
 public:
  virtual ~Documents();
  virtual int64_t count() const = 0;
  /// Number of tokens in a document, including its end-of-text id.
  virtual int64_t length(int64_t document) = 0;
  /// Copies tokens [offset, offset + out.size()) of a document to `out`.
  virtual void read(int64_t document, int64_t offset, std::span<int64_t> out) = 0;
  /// A string that changes if any document changes. When a stream resumes with another fingerprint,
  /// it compares the hashes of the documents that were already read.
  virtual std::string fingerprint() const = 0;
  /// A hash of a document's tokens. By default, of the fingerprint, so that a stream resumes only
  /// if no document has changed.
  virtual uint64_t hash(int64_t document) const;
  /// What a resumed run needs to select the same documents; null = nothing.
  virtual nlohmann::json state() const;
  /// Selects the documents that were selected when state() returned `state`, even if documents have
  /// been corrected or appended since.
  virtual void load_state(const nlohmann::json& state);
  /// Where the documents come from, for error messages.
  virtual std::string source() const = 0;
};

/// Packs documents without gaps: if s is the token stream, row n is s[n T .. n T + T], so a row's
/// last token is the next row's first. The training stream is endless and uses a new random order
/// of the documents in each epoch, which depends on (seed, epoch). The validation stream is one
/// pass in a fixed order that depends only on the number of documents. Its end is padded with token
/// 0 and document id -1, by whole rows if necessary, so that all ranks return the same number of
/// batches.
class PackedStream : public Data {
 public:
  /// Throws dsv3::Error (ExitCode::data) with the token counts if the training documents do not
  /// fill one row or the validation documents contain no target. With a validation share of 0, the
  /// validation stream is empty.
  PackedStream(std::shared_ptr<Documents> documents, const DataContext& context);
  Batch next() override;
  nlohmann::json state() const override;
  void load_state(const nlohmann::json& state) override;

 private:
  struct Cursor {
    int64_t epoch = 0, position = 0, offset = 0;  // `position` is an index into the epoch's
                                                  // document order
  };
  bool training() const { return context_.split == Split::train; }
  int64_t document_at(const Cursor& at);
  int64_t walk(Cursor& at, int64_t count, int64_t* tokens, int64_t* ids);
  void check_enough();
  void hash_read();
  void move_to(const Cursor& at, const nlohmann::json& state);

  std::shared_ptr<Documents> documents_;
  DataContext context_;
  Cursor cursor_;       // start of the first row that no rank has returned
  int64_t hashed_ = 0;  // number of documents of epoch 0 in read_hash_
  uint64_t read_hash_ = 0;
  int64_t rows_ = 0;  // number of rows returned by all ranks together
  int64_t order_epoch_ = 0;
  Permutation order_;
};

}  // namespace dsv3
