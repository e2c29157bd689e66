#include <algorithm>
#include <cstddef>
#include <cstring>

#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/sha256.h>
#include <dsv3/support/token_file.h>

#include "data/token_index.h"

namespace dsv3 {
namespace {

/// The header of a shard; see dsv3/support/token_file.h.
struct ShardHeader {
  char magic[8] = "dsv3tok";
  uint32_t version = 2, id_bytes = 2;
  uint64_t tokens = 0, documents = 0, vocab = 0;
  int64_t eos = -1;
  char tokenizer[64] = {};
  uint64_t piece_bytes = 0;
  char tables[64] = {};
  char reserved[64] = {};
  uint64_t checksum = 0;

  uint64_t computed_checksum() const {
    return document_hash({reinterpret_cast<const char*>(this), offsetof(ShardHeader, checksum)});
  }
};
static_assert(sizeof(ShardHeader) == 256);

constexpr size_t kLlmcHeaderBytes = 256 * 4;
constexpr uint32_t kLlmc16 = 20240520, kLlmc32 = 20240801;
constexpr uint64_t kPieceBytes = 1 << 20;
constexpr uint64_t kMaxPieceBytes = 1 << 30;
constexpr uint64_t kDigestBytes = 64, kDocumentBytes = 16;

template <class T>
T load(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

fs::Mapping map(const std::string& path) try {
  return fs::Mapping(path);
} catch (const Error& error) {
  throw Error(error.what(), ExitCode::data);
}

[[noreturn]] void fail(const std::string& path, const std::string& what) {
  throw Error("bad token file " + path + ": " + what, ExitCode::data);
}

uint64_t padded(uint64_t bytes) {
  return (bytes + 7) / 8 * 8;
}

uint64_t pieces_in(uint64_t bytes, uint64_t piece_bytes) {
  return bytes / piece_bytes + (bytes % piece_bytes != 0);
}

}  // namespace

TokenFile::TokenFile(const std::string& path, const std::string& format)
    : path_(path), format_(format), mapping_(map(path)) {
  if (format_ == "auto") {
    const uint32_t first = mapping_.size() >= 4 ? load<uint32_t>(mapping_.data()) : 0;
    format_ = std::filesystem::path(path).extension() == kShardExtension ? "dsv3"
              : first == kLlmc16 || first == kLlmc32                     ? "llmc"
                                                                         : "raw16";
  }
  if (format_ == "dsv3")
    open_shard();
  else if (format_ == "llmc")
    open_llmc();
  else if (format_ == "raw16")
    open_raw();
  else
    throw Error("unknown token file format '" + format_ + "'; use auto, dsv3, llmc or raw16",
                ExitCode::data);
}

void TokenFile::open_shard() {
  const std::string_view bytes = mapping_.view();
  if (bytes.size() < sizeof(ShardHeader))
    fail(path_,
         std::to_string(bytes.size()) +
             " bytes are too few for a shard's header; copy it again, or prepare the data again");
  const auto header = load<ShardHeader>(bytes.data());
  if (std::memcmp(header.magic, ShardHeader().magic, sizeof header.magic) != 0)
    fail(path_, std::string("it does not start with a shard's magic bytes; for another format, ") +
                    "rename it (" + kShardExtension + " is for shards) or set `format`");
  if (header.version != 1 && header.version != 2)
    fail(path_, "version " + std::to_string(header.version) +
                    " is not supported (this dsv3 reads versions 1 and 2); prepare the data again");
  if (header.checksum != header.computed_checksum())
    fail(path_, "its header is damaged (checksum); prepare the data again");
  header_ = {header.version,
             header.id_bytes,
             header.tokens,
             header.documents,
             header.vocab,
             header.eos,
             std::string(header.tokenizer, strnlen(header.tokenizer, sizeof header.tokenizer))};
  if (header_.id_bytes != 2 && header_.id_bytes != 4)
    fail(path_, "its header declares " + std::to_string(header_.id_bytes) +
                    "-byte ids, but only 2 and 4 bytes are supported; prepare the data again");
  // Divide instead of multiplying, because the counts in a damaged header could overflow.
  const uint64_t room = bytes.size() - sizeof(ShardHeader);
  if (header.version > 1) piece_bytes_ = header.piece_bytes;
  if (header.version > 1 && (piece_bytes_ < 8 || piece_bytes_ > kMaxPieceBytes))
    fail(path_, "its header declares pieces of " + std::to_string(piece_bytes_) +
                    " bytes; prepare the data again");
  const bool too_many =
      header_.tokens > room / header_.id_bytes || header_.documents > room / kDocumentBytes;
  const uint64_t id_bytes = too_many ? 0 : padded(header_.tokens * header_.id_bytes);
  const uint64_t digest_bytes =
      header.version > 1 ? pieces_in(id_bytes, piece_bytes_) * kDigestBytes : 0;
  if (too_many || id_bytes + header_.documents * kDocumentBytes + digest_bytes != room)
    fail(path_, "its header declares " + std::to_string(header_.tokens) + " tokens and " +
                    std::to_string(header_.documents) + " documents, but the file has " +
                    std::to_string(bytes.size()) +
                    " bytes; it is truncated: copy it again, or prepare the data again");
  ids_ = bytes.data() + sizeof(ShardHeader);
  table_ = ids_ + id_bytes;
  if (header.version > 1) {
    if (sha256({table_, room - id_bytes}) != std::string_view(header.tables, kDigestBytes))
      fail(path_,
           "its document table is damaged (SHA-256); copy it again, or prepare the data again");
    pieces_ = table_ + header_.documents * kDocumentBytes;
    verified_ = std::make_unique<std::atomic<bool>[]>(pieces_in(id_bytes, piece_bytes_));
  }
  uint64_t end = 0;
  for (uint64_t i = 0; i < header_.documents; ++i) {
    const uint64_t next = load<uint64_t>(table_ + i * 16);
    if (next < end || next > header_.tokens)
      fail(path_, "its document table is damaged at entry " + std::to_string(i) +
                      "; prepare the data again");
    end = next;
  }
  if (end != header_.tokens)
    fail(path_, "its document table does not cover all of its tokens; prepare the data again");
}

void TokenFile::open_llmc() {
  const std::string_view bytes = mapping_.view();
  if (bytes.size() < kLlmcHeaderBytes) fail(path_, "it is shorter than llm.c's 1,024-byte header");
  const uint32_t magic = load<uint32_t>(bytes.data()), version = load<uint32_t>(bytes.data() + 4);
  if (!(magic == kLlmc16 && version == 1) && !(magic == kLlmc32 && version == 7))
    fail(path_, "llm.c magic " + std::to_string(magic) + " version " + std::to_string(version) +
                    " is not supported; use 20240520 version 1 or 20240801 version 7");
  header_.version = version;
  header_.id_bytes = magic == kLlmc16 ? 2 : 4;
  const int32_t count = load<int32_t>(bytes.data() + 8);
  const uint64_t room = bytes.size() - kLlmcHeaderBytes;
  if (count < 0 || uint64_t(count) * header_.id_bytes != room)
    fail(path_, "its header declares " + std::to_string(count) + " tokens of " +
                    std::to_string(header_.id_bytes) + " bytes each, but " + std::to_string(room) +
                    " bytes follow it");
  header_.tokens = count;
  ids_ = bytes.data() + kLlmcHeaderBytes;
}

void TokenFile::open_raw() {
  if (mapping_.size() % 2)
    fail(path_, "raw uint16 ids need an even number of bytes, but the file has " +
                    std::to_string(mapping_.size()));
  header_.tokens = mapping_.size() / 2;
  ids_ = mapping_.data();
}

void TokenFile::verify(uint64_t begin, uint64_t end) const {
  for (uint64_t piece = begin / piece_bytes_; piece * piece_bytes_ < end; ++piece) {
    if (verified_[piece]) continue;
    const uint64_t first = piece * piece_bytes_;
    const uint64_t size =
        std::min<uint64_t>(piece_bytes_, static_cast<uint64_t>(table_ - ids_) - first);
    if (sha256({ids_ + first, size}) !=
        std::string_view(pieces_ + piece * kDigestBytes, kDigestBytes))
      fail(path_, "tokens " + std::to_string(first / header_.id_bytes) + " to " +
                      std::to_string(std::min((first + size) / header_.id_bytes, header_.tokens)) +
                      " are damaged (SHA-256); copy the file again, or prepare the data again");
    verified_[piece] = true;
  }
}

void TokenFile::verify() const {
  mapping_.check();
  if (pieces_) verify(0, header_.tokens * header_.id_bytes);
}

void TokenFile::read(uint64_t begin, std::span<int64_t> out) const {
  mapping_.check();
  if (pieces_) verify(begin * header_.id_bytes, (begin + out.size()) * header_.id_bytes);
  const char* at = ids_ + begin * header_.id_bytes;
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = header_.id_bytes == 2 ? load<uint16_t>(at + i * 2) : load<uint32_t>(at + i * 4);
}

std::vector<TokenDocument> TokenFile::documents(int64_t eos) const {
  std::vector<TokenDocument> found;
  if (table_) {
    uint64_t begin = 0;
    for (uint64_t i = 0; i < header_.documents; ++i) {
      const uint64_t end = load<uint64_t>(table_ + i * 16);
      found.push_back({begin, end, load<uint64_t>(table_ + i * 16 + 8)});
      begin = end;
    }
    return found;
  }
  const auto add = [&](uint64_t begin, uint64_t end) {
    const std::string_view bytes{ids_ + begin * header_.id_bytes, (end - begin) * header_.id_bytes};
    found.push_back({begin, end, document_hash(bytes)});
  };
  uint64_t begin = 0;
  for (uint64_t i = 0; eos >= 0 && i < header_.tokens; ++i) {
    int64_t id;
    read(i, {&id, 1});
    if (id != eos) continue;
    add(begin, i + 1);
    begin = i + 1;
  }
  if (begin < header_.tokens) add(begin, header_.tokens);
  return found;
}

std::vector<std::string> token_files_in(const std::string& path) {
  namespace stdfs = std::filesystem;
  std::error_code error;
  const stdfs::file_status status = stdfs::status(path, error);
  if (!stdfs::exists(status))
    throw Error(
        "no such token file or folder: " + path + " (relative paths start at the current folder)",
        ExitCode::data);
  if (!stdfs::is_directory(status)) return {path};
  std::vector<std::string> found;
  stdfs::directory_iterator at(path, error), end;
  for (; !error && at != end; at.increment(error)) {
    const std::string extension = at->path().extension().string();
    if (extension == kShardExtension || extension == ".bin") found.push_back(at->path().string());
  }
  if (error) throw Error("cannot read folder " + path + ": " + error.message(), ExitCode::data);
  check_token_index(path, found);
  if (found.empty())
    throw Error("no " + std::string(kShardExtension) + " or .bin file in folder " + path,
                ExitCode::data);
  std::sort(found.begin(), found.end());
  return found;
}

void TokenShard::add(std::span<const int32_t> document, uint64_t hash) {
  for (int32_t id : document)  // little-endian: low bytes first
    ids_.append(reinterpret_cast<const char*>(&id), header_.id_bytes);
  header_.tokens += document.size();
  header_.documents += 1;
  table_.insert(table_.end(), {header_.tokens, hash});
}

void TokenShard::write(const fs::Path& path) const {
  ShardHeader header{.version = header_.version,
                     .id_bytes = header_.id_bytes,
                     .tokens = header_.tokens,
                     .documents = header_.documents,
                     .vocab = header_.vocab,
                     .eos = header_.eos};
  header_.tokenizer.copy(header.tokenizer, sizeof header.tokenizer);
  std::string ids = ids_;
  ids.resize(padded(ids.size()), '\0');
  std::string tables(reinterpret_cast<const char*>(table_.data()),
                     table_.size() * sizeof(uint64_t));
  for (size_t begin = 0; begin < ids.size(); begin += kPieceBytes)
    tables += sha256(std::string_view(ids).substr(begin, kPieceBytes));
  header.piece_bytes = kPieceBytes;
  sha256(tables).copy(header.tables, sizeof header.tables);
  header.checksum = header.computed_checksum();
  fs::Writer writer(path);
  writer.write(&header, sizeof header);
  writer.write(ids);
  writer.write(tables);
  writer.sync();
  writer.close();
}

}  // namespace dsv3
