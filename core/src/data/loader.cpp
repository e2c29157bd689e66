#include <dsv3/runtime/data.h>

#include "call/checked.h"
#include "data/timed_tokenizer.h"
#include "support/host.h"

namespace dsv3 {

Loader::Loader(std::shared_ptr<Data> data, DataContext context, int64_t depth,
               std::shared_ptr<const TimedTokenizer> tokenizer)
    : data_(std::move(data)),
      context_(std::move(context)),
      depth_(depth),
      tokenizer_(std::move(tokenizer)),
      state_(call(*data_, "state", &Data::state)) {}

Batch Loader::next() {
  if (depth_ <= 0) return hand_out(load());
  if (!thread_.joinable()) thread_ = std::jthread([this](std::stop_token stop) { run(stop); });
  std::unique_lock lock(mutex_);
  if (ready_.empty() && !ended_) {
    const double start = seconds_now();
    changed_.wait(lock, [this] { return !ready_.empty() || ended_; });
    wait_seconds_ += seconds_now() - start;
  }
  if (ready_.empty()) {
    if (error_) std::rethrow_exception(error_);
    return {};
  }
  Loaded loaded = std::move(ready_.front());
  ready_.pop_front();
  lock.unlock();
  changed_.notify_all();
  return hand_out(std::move(loaded));
}

void Loader::load_state(const Json& state) {
  thread_ = {};  // stops and joins
  ready_.clear();
  ended_ = false;
  error_ = nullptr;
  call(*data_, "load_state", &Data::load_state, state);
  state_ = call(*data_, "state", &Data::state);
}

Loader::Loaded Loader::load() {
  const auto tokenized = [this] { return tokenizer_ ? tokenizer_->seconds() : 0; };
  LoadTimes times{.start = seconds_now(), .tokenize = -tokenized()};
  Batch batch = checked::next(*data_, context_);
  times.end = seconds_now();
  times.tokenize += tokenized();
  return {std::move(batch), call(*data_, "state", &Data::state), times};
}

Batch Loader::hand_out(Loaded loaded) {
  state_ = std::move(loaded.state);
  times_ = loaded.times;
  return std::move(loaded.batch);
}

void Loader::run(std::stop_token stop) {
  std::exception_ptr error;
  try {
    while (true) {
      Loaded loaded = load();
      std::unique_lock lock(mutex_);
      changed_.wait(lock, stop, [this] { return std::ssize(ready_) < depth_; });
      if (stop.stop_requested()) return;
      if (!loaded.batch.tokens.defined()) break;
      ready_.push_back(std::move(loaded));
      changed_.notify_all();
    }
  } catch (...) {
    error = std::current_exception();
  }
  const std::lock_guard lock(mutex_);
  error_ = error;
  ended_ = true;
  changed_.notify_all();
}

}  // namespace dsv3
