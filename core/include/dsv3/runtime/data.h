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

class TimedTokenizer;

/// When a batch was made, in seconds on a monotonic clock.
struct LoadTimes {
  double start = 0, end = 0;
  double tokenize = 0;  ///< duration of the calls of the tokenizer
};

/// Reads batches from a Data object on a background thread. Not thread-safe.
class Loader {
 public:
  /// `context`: the context that `data` was constructed with; every batch is checked against it.
  /// `depth`: number of batches to load ahead; 0 = load in next(), without a thread (validation).
  /// `tokenizer`: the one in `context`, if its time is to be measured.
  Loader(std::shared_ptr<Data> data, DataContext context, int64_t depth = 4,
         std::shared_ptr<const TimedTokenizer> tokenizer = nullptr);
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// Returns the next batch, or a batch with undefined tokens at the end of the stream and in every
  /// later call. If the Data object threw an error, first returns the batches before the error,
  /// then throws the same error in every call until load_state().
  Batch next();
  /// The stream position after the last batch that next() returned. Does not include batches loaded
  /// ahead.
  const Json& state() const { return state_; }
  /// Resumes from a position that state() returned. Drops batches loaded ahead and pending errors.
  void load_state(const Json& state);
  /// Of the batch that next() returned last.
  const LoadTimes& times() const { return times_; }
  /// Total seconds that next() has spent waiting since construction.
  double wait_seconds() const { return wait_seconds_; }

 private:
  struct Loaded {
    Batch batch;
    Json state;  // after the batch
    LoadTimes times;
  };
  Loaded load();
  Batch hand_out(Loaded loaded);
  void run(std::stop_token stop);

  std::shared_ptr<Data> data_;
  DataContext context_;
  int64_t depth_;
  std::shared_ptr<const TimedTokenizer> tokenizer_;
  Json state_;  // stream state after the last batch that next() returned
  LoadTimes times_;
  double wait_seconds_ = 0;

  std::mutex mutex_;  // guards the members below while the thread runs
  std::condition_variable_any changed_;
  std::deque<Loaded> ready_;
  bool ended_ = false;  // the stream ended or threw, so ready_ receives no more batches
  std::exception_ptr error_;
  std::jthread thread_;  // declared last, so it is joined before the other members are destroyed
};

/// Arguments of `dsv3 data prepare`.
struct PrepareRequest {
  std::vector<std::string> inputs;  ///< text files or folders of text files
  TextFormat format;
  std::filesystem::path out;  ///< folder to create; must not exist or must be empty
  int64_t shard_tokens =
      50'000'000;  ///< minimum number of tokens in a shard, except in the last one
  std::shared_ptr<const Tokenizer> tokenizer;
};

struct PrepareResult {
  int64_t documents = 0, tokens = 0, shards = 0;
  uint64_t text_bytes = 0;
};

/// Tokenizes text into shards that the `tokens` data plugin reads. Writes to a temporary folder
/// next to `out` and renames it, so `out` is never incomplete. The shards preserve the document
/// order and the hashes that select the validation split, so training on shards uses the same rows
/// as training on the text. Throws dsv3::Error (ExitCode::data).
PrepareResult prepare_tokens(const PrepareRequest& request);

/// Describes a token file, or each token file in a folder, one per line. Throws for damaged files.
std::string inspect_tokens(const std::string& path);

}  // namespace dsv3
