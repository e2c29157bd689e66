#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <stop_token>
#include <thread>

#include <dsv3/runtime/data.h>

namespace dsv3 {

class Loader::Queue {
 public:
  Queue(std::shared_ptr<Data> data, int64_t depth)
      : data_(std::move(data)), depth_(depth), state_(data_->state()) {}

  ~Queue() { stop(); }

  Batch next() {
    if (depth_ <= 0) return hand_out(make());
    if (!thread_.joinable() && !over_) start();
    std::unique_lock lock(mutex_);
    if (ready_.empty() && !over_) {
      const auto begin = std::chrono::steady_clock::now();
      changed_.wait(lock, [this] { return !ready_.empty() || over_; });
      waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    if (ready_.empty()) {
      if (error_) std::rethrow_exception(error_);
      return {};
    }
    Made made = std::move(ready_.front());
    ready_.pop_front();
    lock.unlock();
    changed_.notify_all();
    return hand_out(std::move(made));
  }

  const Json& state() const { return state_; }

  void load_state(const Json& state) {
    stop();
    ready_.clear();
    over_ = false;
    error_ = nullptr;
    data_->load_state(state);
    state_ = data_->state();
  }

  double waited() const { return waited_; }

 private:
  struct Made {
    Batch batch;
    Json state;
  };

  Made make() {
    Batch batch = data_->next();
    return {std::move(batch), data_->state()};
  }

  Batch hand_out(Made made) {
    state_ = std::move(made.state);
    return std::move(made.batch);
  }

  void start() {
    thread_ = std::jthread([this](std::stop_token stop) { run(stop); });
  }

  void stop() {
    if (!thread_.joinable()) return;
    thread_.request_stop();
    changed_.notify_all();
    thread_.join();
  }

  void run(std::stop_token stop) {
    try {
      while (true) {
        Made made = make();
        const bool end = !made.batch.tokens.defined();
        std::unique_lock lock(mutex_);
        changed_.wait(lock, stop, [this] { return std::ssize(ready_) < depth_; });
        if (stop.stop_requested()) return;
        if (end) break;
        ready_.push_back(std::move(made));
        lock.unlock();
        changed_.notify_all();
      }
    } catch (...) {
      std::lock_guard lock(mutex_);
      error_ = std::current_exception();
    }
    {
      std::lock_guard lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
  }

  std::shared_ptr<Data> data_;
  int64_t depth_;
  Json state_;  // after the last batch handed out
  double waited_ = 0;

  std::mutex mutex_;  // guards what follows while the thread runs
  std::condition_variable_any changed_;
  std::deque<Made> ready_;
  bool over_ = false;  // the stream ended or threw; nothing follows ready_
  std::exception_ptr error_;
  std::jthread thread_;
};

Loader::Loader(std::shared_ptr<Data> data, int64_t depth)
    : queue_(std::make_unique<Queue>(std::move(data), depth)) {}
Loader::~Loader() = default;
Batch Loader::next() {
  return queue_->next();
}
Json Loader::state() const {
  return queue_->state();
}
void Loader::load_state(const Json& state) {
  queue_->load_state(state);
}
double Loader::wait_seconds() const {
  return queue_->waited();
}

}  // namespace dsv3
