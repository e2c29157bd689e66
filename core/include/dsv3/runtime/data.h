// Batches for the trainer, made ahead of time; and text made into token shards.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <dsv3/sdk/data.h>
#include <dsv3/support/json.h>
#include <dsv3/support/text_files.h>

namespace dsv3 {

/// Takes batches from a Data on a thread of its own. For one user thread; nobody else may use the
/// Data.
class Loader {
 public:
  /// `depth`: batches made ahead; 0 = no thread (validation).
  explicit Loader(std::shared_ptr<Data> data, int64_t depth = 4);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next batch; undefined tokens at the end, also when called again. What the Data threw is
  /// thrown here, after the batches before it, and again by every later call until load_state.
  Batch next();
  /// Where the stream stands after the last batch that next() returned: what was made ahead does
  /// not count.
  Json state() const;
  /// Goes on from a state; drops what was made ahead, and errors.
  void load_state(const Json& state);
  /// Seconds that next() waited, since construction.
  double wait_seconds() const;

 private:
  class Queue;
  std::unique_ptr<Queue> queue_;
};

/// What `dsv3 data prepare` is asked for.
struct PrepareRequest {
  std::vector<std::string> inputs;  ///< files and folders of text
  TextFormat format;
  std::filesystem::path out;          ///< made; must not exist yet, or be empty
  int64_t shard_tokens = 50'000'000;  ///< a shard ends with the document that reaches this
  std::shared_ptr<const Tokenizer> tokenizer;
};

struct PrepareResult {
  int64_t documents = 0, tokens = 0, shards = 0;
  uint64_t text_bytes = 0;
};

/// Tokenises text into shards that the `tokens` data plugin reads, all at once or not at all:
/// everything is written to a neighbour of `out`, which is renamed. Documents keep their order and
/// the hash that splits them, so that training on shards sees the same rows as training on the
/// text. Throws dsv3::Error (ExitCode::data).
PrepareResult prepare_tokens(const PrepareRequest& request);

/// What a token file or a folder of them holds, in plain lines. Throws dsv3::Error on damaged
/// files.
std::string inspect_tokens(const std::string& path);

}  // namespace dsv3
