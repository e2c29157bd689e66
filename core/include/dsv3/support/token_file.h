// Files of token ids: dsv3's shards, llm.c's .bin, and raw uint16 as nanoGPT writes it.
//
// A dsv3 shard (.tokens, little endian) consists of a 256-byte header, the ids (uint16 or uint32,
// padded with zeros to a multiple of 8 bytes), a table with a uint64 end (in tokens) and a uint64
// hash (of the text) for each document, and the SHA-256 (64 hex digits) of each piece of the padded
// ids. The header:
//     0  char[8]   "dsv3tok"
//     8  u32       version = 2
//    12  u32       bytes per id
//    16  u64       tokens
//    24  u64       documents
//    32  u64       vocab
//    40  i64       end-of-text id or -1
//    48  char[64]  tokenizer digest
//   112  u64       bytes per piece
//   120  char[64]  SHA-256 of the two tables
//   248  u64       hash of bytes 0-247
// Version 1, which is still read, has no digests: bytes 112-247 are 0, and the file ends with the
// document table.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include <dsv3/support/fs.h>

namespace dsv3 {

/// A shard's header.
struct TokenHeader {
  uint32_t version = 2;
  uint32_t id_bytes = 2;
  uint64_t tokens = 0, documents = 0;
  uint64_t vocab = 0;     ///< 0 = unknown
  int64_t eos = -1;       ///< -1 = none or unknown
  std::string tokenizer;  ///< Tokenizer::digest(); empty = unknown
};

struct TokenDocument {
  uint64_t begin = 0, end = 0;  ///< in tokens
  uint64_t hash = 0;
};

/// A memory-mapped file of token ids. Thread-safe.
class TokenFile {
 public:
  /// `format` is dsv3, llmc, raw16 or auto: dsv3 for .tokens, else llmc if its magic number is
  /// found, else raw16. Checks sizes, magic number, version, checksum and tables; throws
  /// dsv3::Error (ExitCode::data).
  TokenFile(const std::string& path, const std::string& format);

  const std::string& path() const { return path_; }
  const std::string& format() const { return format_; }
  const TokenHeader& header() const { return header_; }
  /// Copies the tokens from `begin` on. Compares each piece of the file with its digest when it is
  /// first read. Throws dsv3::Error (ExitCode::data) if a piece is damaged or the file has shrunk.
  void read(uint64_t begin, std::span<int64_t> out) const;
  /// Compares the whole file with its digests. Throws like read().
  void verify() const;
  bool has_digests() const { return pieces_ != nullptr; }
  /// Returns the documents in the table. Without a table, splits the file after each `eos`, or
  /// returns a single document if eos < 0.
  std::vector<TokenDocument> documents(int64_t eos) const;

 private:
  void open_shard();
  void open_tables(std::string_view tables, std::string_view digest);
  void verify(uint64_t begin, uint64_t end) const;
  void open_llmc();
  void open_raw();

  std::string path_, format_;
  fs::Mapping mapping_;
  TokenHeader header_;
  const char* ids_ = nullptr;
  const char* table_ = nullptr;
  const char* pieces_ = nullptr;  // digests, if the format has them
  uint64_t piece_bytes_ = 0;
  std::unique_ptr<std::atomic<bool>[]> verified_;  // by piece
};

/// Returns `path` itself, or the .tokens and .bin files in the folder `path`, in name order.
std::vector<std::string> token_files_in(const std::string& path);

/// Collects a shard's documents in memory and writes them with a single call.
class TokenShard {
 public:
  /// `header` must contain vocab, eos, tokenizer and id_bytes.
  explicit TokenShard(TokenHeader header) : header_(std::move(header)) {}
  void add(std::span<const int32_t> document, uint64_t hash);
  const TokenHeader& header() const { return header_; }
  void write(const fs::Path& path) const;  ///< and fsyncs

 private:
  TokenHeader header_;
  std::string ids_;
  std::vector<uint64_t> table_;
};

}  // namespace dsv3
