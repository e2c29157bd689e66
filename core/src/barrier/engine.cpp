// Which autograd node a backward failed in. LibTorch tells its engine only, so ours is its engine
// with an ear; nothing is added to graphs or to a backward that succeeds.
#include <mutex>
#include <optional>

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>

#include "barrier/call.h"

namespace dsv3::barrier {
namespace {

struct FailedNode {
  std::string name;
  const Callee* maker;
};
std::mutex mutex;
std::optional<FailedNode> failed_node;

class Engine final : public torch::autograd::Engine {
  // Called for nodes that throw a std::exception, inner ones (of recomputed blocks) first.
  void thread_on_exception(const std::shared_ptr<torch::autograd::GraphTask>& task,
                           const std::shared_ptr<torch::autograd::Node>& node,
                           std::exception& error) override {
    {
      const std::lock_guard lock(mutex);
      if (!failed_node && node)
        failed_node = {node->name(), maker_of(node->sequence_nr(), node->thread_id())};
    }
    torch::autograd::Engine::thread_on_exception(task, node, error);
  }
};

}  // namespace

void watch_backward() {
  static const bool once [[maybe_unused]] = [] {
    torch::autograd::set_default_engine_stub([]() -> torch::autograd::Engine& {
      static Engine& engine = *new Engine;  // its threads may outlive main, as LibTorch's own
      return engine;
    });
    return true;
  }();
}

void forget_failed_node() {
  const std::lock_guard lock(mutex);
  failed_node.reset();
}

void rethrow_from_backward(const InCall& call) {
  std::optional<FailedNode> node;
  {
    const std::lock_guard lock(mutex);
    node = failed_node;
  }
  if (!node) rethrow_named(call);
  const std::string action = "backward, autograd node " + node->name;
  if (node->maker)
    rethrow_behind(place(*node->maker, node->maker->layer, action), ExitCode::plugin);
  rethrow_behind(action + at_step() + " under " + call.callee.label + ": ", ExitCode::failed);
}

}  // namespace dsv3::barrier
