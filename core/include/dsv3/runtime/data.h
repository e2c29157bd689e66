// Loads batches ahead of the trainer, and tokenizes text into shards.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <dsv3/sdk/data.h>
#include <dsv3/support/json.h>
#include <dsv3/support/text_files.h>

namespace dsv3 {

/// Reads batches from a Data on its own thread. Only one thread may use a Loader, and nothing else
/// may use its Data.
class Loader {
 public:
  /// `context`: what `data` was constructed with; batches are checked against it. `depth`: how many
  /// batches to load ahead; 0 = load in next(), without a thread (validation).
  Loader(std::shared_ptr<Data> data, DataContext context, int64_t depth = 4);
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// Returns the next batch; its tokens are undefined at the end of the stream and in every later
  /// call. Throws what the Data threw, once the batches before the error are returned, and again in
  /// every later call until load_state().
  Batch next();
  /// Position after the last batch that next() returned; batches loaded ahead do not count.
  const Json& state() const { return state_; }
  /// Continues from a saved position. Drops batches loaded ahead and pending errors.
  void load_state(const Json& state);
  /// Seconds that next() has waited since construction.
  double wait_seconds() const { return wait_seconds_; }

 private:
  struct Loaded {
    Batch batch;
    Json state;  // after the batch
  };
  Loaded load();
  Batch hand_out(Loaded loaded);
  void run(std::stop_token stop);

  std::shared_ptr<Data> data_;
  DataContext context_;
  int64_t depth_;
  Json state_;  // state after the last returned batch
  double wait_seconds_ = 0;

  std::mutex mutex_;  // guards what follows while the thread runs
  std::condition_variable_any changed_;
  std::deque<Loaded> ready_;
  bool ended_ = false;  // the stream ended or threw; nothing follows ready_
  std::exception_ptr error_;
  std::jthread thread_;  // last: joined before the other members are destroyed
};

/// Arguments of `dsv3 data prepare`.
struct PrepareRequest {
  std::vector<std::string> inputs;  ///< files and folders of text
  TextFormat format;
  std::filesystem::path out;          ///< folder to create; must not exist or must be empty
  int64_t shard_tokens = 50'000'000;  ///< a shard ends with the document that reaches this
  std::shared_ptr<const Tokenizer> tokenizer;
};

struct PrepareResult {
  int64_t documents = 0, tokens = 0, shards = 0;
  uint64_t text_bytes = 0;
};

/// Tokenizes text into shards that the `tokens` data plugin reads, atomically: it writes a
/// temporary folder beside `out` and renames it. Documents keep their order and the hash that
/// splits them, so training on shards sees the same rows as training on the text. Throws
/// dsv3::Error (ExitCode::data).
PrepareResult prepare_tokens(const PrepareRequest& request);

/// Describes a token file, or each token file in a folder, as lines of text. Throws dsv3::Error for
/// damaged files.
std::string inspect_tokens(const std::string& path);

}  // namespace dsv3
