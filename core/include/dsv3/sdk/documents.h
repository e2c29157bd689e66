// What data plugins that read documents share: who is held out, in which order documents come, and
// how they are packed into rows. A plugin implements Documents and gets a Data from PackedStream.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include <dsv3/sdk/data.h>

namespace dsv3 {

/// 64 random bits that depend on nothing but `words` (a counter-based generator).
uint64_t random_bits(std::initializer_list<uint64_t> words);

/// Hash of a document's bytes, the same on every machine and in every version.
uint64_t document_hash(std::string_view bytes);

/// Whether a document is held out. Depends on its hash only: adding or removing other documents
/// moves none, and what a small share holds out, a larger one does too.
bool held_out(uint64_t hash, double validation_share);

/// A random order of 0 .. count-1 from (seed, epoch), computed element by element without memory.
class Permutation {
 public:
  Permutation(uint64_t count, uint64_t seed, uint64_t epoch);
  uint64_t operator()(uint64_t position) const;

 private:
  uint64_t count_, half_bits_, key_;
};

/// The documents of one split, by index. Used by one thread at a time.
class Documents {
 public:
  virtual ~Documents();
  virtual int64_t count() const = 0;
  /// Tokens of a document, its end-of-text id included.
  virtual int64_t length(int64_t document) = 0;
  /// Tokens offset .. offset + out.size() of a document.
  virtual void read(int64_t document, int64_t offset, std::span<int64_t> out) = 0;
  /// Changes when a document does; compared when a stream goes on from a state.
  virtual std::string fingerprint() const = 0;
  /// Where the documents come from, for error texts.
  virtual std::string source() const = 0;
};

/// Documents packed without gaps: with the token stream s, row n is s[n T .. n T + T], so a row's
/// last token is the next row's first. Training: endless, a new permutation of the documents from
/// (seed, epoch) each epoch. Validation: one pass in a fixed order that depends on nothing but the
/// number of documents; rows with at least one target; padded with token 0 and document id -1, also
/// by whole rows so that every rank sees the same number of batches.
class PackedStream : public Data {
 public:
  /// Throws dsv3::Error (ExitCode::data) with numbers when the text does not fill one training row
  /// or gives no validation target. A validation stream of share 0 is empty.
  PackedStream(std::shared_ptr<Documents> documents, const DataContext& context);
  Batch next() override;
  nlohmann::json state() const override;
  void load_state(const nlohmann::json& state) override;

 private:
  struct Cursor {
    int64_t epoch = 0, position = 0, offset = 0;  // position: in the epoch's order
  };
  bool training() const { return context_.split == Split::train; }
  int64_t document_at(const Cursor& at);
  int64_t walk(Cursor& at, int64_t wanted, int64_t* tokens, int64_t* ids);
  void check_enough();

  std::shared_ptr<Documents> documents_;
  DataContext context_;
  Cursor cursor_;     // of the first row that no rank has handed out
  int64_t rows_ = 0;  // rows handed out by all ranks
  int64_t order_epoch_ = 0;
  Permutation order_;
};

}  // namespace dsv3
