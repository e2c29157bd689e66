#include <ATen/Parallel.h>

#include <dsv3/runtime/data.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/token_file.h>

#include "data/token_index.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

constexpr uint64_t kGroupBytes = 8 << 20;  // bytes of text to encode at a time, to limit memory

/// Encodes documents [first, last) on all cores and appends the end-of-text id to each of them.
std::vector<std::vector<int32_t>> encode_group(const TextFiles& files, size_t first, size_t last,
                                               const Tokenizer& tokenizer) {
  std::vector<std::vector<int32_t>> encoded(last - first);
  at::parallel_for(0, std::ssize(encoded), 1, [&](int64_t begin, int64_t end) {
    std::string buffer;
    for (int64_t i = begin; i < end; ++i) {
      encoded[i] = tokenizer.encode(files.text(files.documents()[first + i], buffer));
      if (tokenizer.eos_id() >= 0) encoded[i].push_back(tokenizer.eos_id());
    }
  });
  return encoded;
}

/// Writes token shards and their index to `folder`.
class ShardWriter {
 public:
  ShardWriter(stdfs::path folder, const Tokenizer& tokenizer, int64_t shard_tokens)
      : folder_(std::move(folder)),
        shard_tokens_(shard_tokens),
        start_{.id_bytes = tokenizer.vocab_size() <= 65536 ? 2u : 4u,
               .vocab = uint64_t(tokenizer.vocab_size()),
               .eos = tokenizer.eos_id(),
               .tokenizer = tokenizer.digest()} {}

  void add(std::span<const int32_t> document, uint64_t hash) {
    shard_.add(document, hash);
    if (int64_t(shard_.header().tokens) >= shard_tokens_) flush();
  }

  PrepareResult finish() {
    flush();
    const Json index = {{"format", kTokenIndexFormat},    {"version", start_.version},
                        {"vocab", start_.vocab},          {"eos", start_.eos},
                        {"tokenizer", start_.tokenizer},  {"tokens", result_.tokens},
                        {"documents", result_.documents}, {"shards", shards_}};
    fs::write_atomically(folder_ / kTokenIndexName, index.dump(1) + "\n");
    return result_;
  }

 private:
  void flush() {
    if (shard_.header().documents == 0) return;
    char name[32];
    std::snprintf(name, sizeof name, "shard-%05d.tokens", int(result_.shards));
    shard_.write(folder_ / name);
    const TokenHeader& header = shard_.header();
    shards_.push_back({{"file", name},
                       {"tokens", header.tokens},
                       {"documents", header.documents},
                       {"header", shard_digest(folder_ / name)}});
    result_.shards += 1;
    result_.tokens += header.tokens;
    result_.documents += header.documents;
    shard_ = TokenShard(start_);
  }

  stdfs::path folder_;
  int64_t shard_tokens_;
  TokenHeader start_;
  TokenShard shard_{start_};
  Json shards_ = Json::array();
  PrepareResult result_;
};

/// The shards are complete, but not at their place.
struct Unpublished : Error {
  using Error::Error;
};

/// Renames `folder` to `target`, which may be an empty folder. Somebody else may have written to it
/// in the meantime, so nothing there is removed.
void publish(const stdfs::path& folder, const stdfs::path& target) {
  try {
    fs::rename(folder, target);
    fs::sync_folder(target.parent_path());
  } catch (const Error& error) {
    throw Unpublished(error.what() + ("; the shards are complete in " + folder.string()));
  }
}

}  // namespace

PrepareResult prepare_tokens(const PrepareRequest& request) {
  if (!request.tokenizer)
    throw Error("data cannot be prepared without a tokenizer", ExitCode::usage);
  if (request.shard_tokens < 1) throw Error("shard size must be at least 1 token", ExitCode::usage);
  if (request.out.empty()) throw Error("the output folder has no name", ExitCode::usage);
  std::error_code ignored;
  if (stdfs::exists(request.out, ignored) && !stdfs::is_empty(request.out, ignored))
    throw Error(
        "the output folder " + request.out.string() + " is not empty; remove it or choose another",
        ExitCode::usage);
  const TextFiles files(request.inputs, request.format);
  stdfs::path target = stdfs::absolute(request.out);
  if (!target.has_filename()) target = target.parent_path();  // "out/" is "out"
  if (stdfs::is_symlink(target, ignored) && !stdfs::exists(target, ignored))
    throw Error("the output folder " + request.out.string() + " is a link to a missing folder",
                ExitCode::usage);
  target = stdfs::weakly_canonical(target);
  const stdfs::path folder = fs::temporary_name(target);
  fs::make_folders(folder);
  try {
    ShardWriter writer(folder, *request.tokenizer, request.shard_tokens);
    const auto& documents = files.documents();
    for (size_t first = 0, last = 0; first < documents.size(); first = last) {
      for (uint64_t bytes = 0; last < documents.size() && bytes < kGroupBytes; ++last)
        bytes += documents[last].size;
      const auto encoded = encode_group(files, first, last, *request.tokenizer);
      for (size_t i = first; i < last; ++i) writer.add(encoded[i - first], documents[i].hash);
    }
    PrepareResult result = writer.finish();
    result.text_bytes = files.bytes();
    files.warn_about_skipped();
    fs::sync_folder(folder);
    publish(folder, target);
    return result;
  } catch (const Unpublished&) {
    throw;
  } catch (...) {
    stdfs::remove_all(folder, ignored);
    throw;
  }
}

std::string inspect_tokens(const std::string& path) {
  std::string text;
  uint64_t tokens = 0, documents = 0;
  const std::vector<std::string> paths = token_files_in(path);
  for (const std::string& name : paths) {
    const TokenFile file(name, "auto");
    file.verify();
    const TokenHeader& header = file.header();
    text += c10::str(printable_line(name), ": format ", file.format(), ", ", header.tokens,
                     " ids of ", header.id_bytes, " bytes");
    if (file.format() == "dsv3")
      text += c10::str(", ", header.documents, " documents, vocabulary ", header.vocab,
                       ", end of text ", header.eos, ", tokenizer ", header.tokenizer.substr(0, 12),
                       file.has_digests() ? ", digests match" : ", no digests");
    text += "\n";
    tokens += header.tokens;
    documents += header.documents;
  }
  if (paths.size() > 1)
    text += c10::str("total: ", paths.size(), " files, ", tokens, " tokens, ", documents,
                     " documents\n");
  return text;
}

}  // namespace dsv3
