// Every call into a loaded component goes through a guard: an object of the component's kind that
// says where the process is while the component runs, names it in whatever it throws, and refuses
// results that the kind does not allow. Checks read sizes and dtypes only, never a device's values.
#pragma once

#include <memory>

#include <dsv3/sdk/attention.h>
#include <dsv3/sdk/data.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/optimizer.h>
#include <dsv3/sdk/position.h>
#include <dsv3/sdk/schedule.h>
#include <dsv3/sdk/strategy.h>
#include <dsv3/sdk/tokenizer.h>
#include <dsv3/sdk/tracker.h>

#include "barrier/call.h"

namespace dsv3::barrier {

/// A component and the way into it.
template <class Base>
class Guarded {
 public:
  Guarded(const Callee& callee, std::shared_ptr<Base> object)
      : callee_(callee), object_(std::move(object)) {}
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() {
    const InCall call(callee_, "destructor");
    object_.reset();
  }

  /// use(object) inside of the barrier.
  template <class Use>
  auto call(const char* action, const Use& use) const {
    const InCall call(callee_, action);
    try {
      return use(*object_);
    } catch (...) {
      rethrow_named(call);
    }
  }
  const Callee& callee() const { return callee_; }
  Base& object() const { return *object_; }

 private:
  const Callee& callee_;
  std::shared_ptr<Base> object_;
};

/// Throws dsv3::Error(`text`), which the guard gives its place; a plugin's fault.
[[noreturn]] void refuse(const std::string& text);

// Guards of a kind; the contexts are those that the component was made with.
std::shared_ptr<Attention> guard(const Callee&, std::shared_ptr<Attention>, const LayerContext&);
std::shared_ptr<FeedForward> guard(const Callee&, std::shared_ptr<FeedForward>,
                                   const LayerContext&);
std::shared_ptr<Position> guard(const Callee&, std::shared_ptr<Position>, const PositionContext&);
std::shared_ptr<Optimizer> guard(const Callee&, std::shared_ptr<Optimizer>);
std::shared_ptr<Schedule> guard(const Callee&, std::shared_ptr<Schedule>);
std::shared_ptr<Strategy> guard(const Callee&, std::shared_ptr<Strategy>, const StrategyContext&);
std::shared_ptr<Tracker> guard(const Callee&, std::shared_ptr<Tracker>, const RunContext&);
std::shared_ptr<Data> guard(const Callee&, std::shared_ptr<Data>, const DataContext&);
std::shared_ptr<Tokenizer> guard(const Callee&, std::shared_ptr<Tokenizer>,
                                 const TokenizerContext&);

}  // namespace dsv3::barrier
