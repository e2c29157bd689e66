// Calls components and checks their results. A result that violates the component's interface
// contract is reported like an exception from the component. The checks only read sizes, dtypes and
// devices, never values on a GPU.
#pragma once

#include <cmath>

#include <dsv3/sdk/data.h>
#include <dsv3/sdk/feed_forward.h>
#include <dsv3/sdk/format.h>
#include <dsv3/sdk/position.h>
#include <dsv3/sdk/strategy.h>
#include <dsv3/sdk/tracker.h>

#include "call/call.h"

namespace dsv3 {

/// Observes the outputs of all modules, to find the first module with a non-finite output.
/// Process-wide, because recomputed forward passes run on autograd's thread.
class Watch {
 public:
  Watch() { active = this; }
  virtual ~Watch() { active = nullptr; }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  /// `name` is e.g. "layers.3.feed_forward (feed_forward 'moe', nano.yaml:9:5)".
  virtual void passed(const std::string& name, at::TensorList inputs, at::TensorList outputs) = 0;

  /// The active watch; null during normal steps.
  static std::atomic<Watch*> active;
};

}  // namespace dsv3

namespace dsv3::checked {

/// Throws dsv3::Error. Use it inside `call`, which adds the component's name.
[[noreturn]] void fail(const std::string& text, ExitCode code = ExitCode::plugin);

/// Calls a method that returns a number, which must be finite and at least 0.
template <class Interface, class Method, class... Args>
auto number(Interface& component, const char* name, Method method, const Args&... args) {
  return call(component, name, [&](Interface& c) {
    const auto value = std::invoke(method, c, args...);
    if (!std::isfinite(double(value)) || value < 0) {
      std::string listed;
      ((listed += (listed.empty() ? "" : ", ") + std::to_string(args)), ...);
      fail(std::string(name) + "(" + listed + ") is " + std::to_string(value) +
           "; it must be finite and at least 0");
    }
    return value;
  });
}

/// Calls Attention::forward or FeedForward::forward. The result must have x's shape, dtype and
/// device, and attention must also append x's tokens to its cache.
template <class Layer>
at::Tensor forward(Layer& layer, const at::Tensor& x, const Sequence& seq);
std::pair<at::Tensor, at::Tensor> rotate(const Position& position, const at::Tensor& q,
                                         const at::Tensor& k, const at::Tensor& positions);
at::Tensor step_counts(Component& layer);

/// `unit_index` is the number of units that the strategy has adopted so far. adopt() must return
/// it.
int adopt(Strategy& strategy, UnitSpec unit, int unit_index);
/// Attributes an error in an autograd node to the component whose forward pass created the node.
void backward(Strategy& strategy, at::TensorList roots);
at::Tensor grad_norm(Strategy& strategy, at::Device device);
void update(Strategy& strategy, int group, const std::function<void(std::span<UpdateTensor>)>& fn);
/// Calls Strategy::update() between steps to read or replace values. Gradients may be undefined.
void exchange(Strategy& strategy, int group,
              const std::function<void(std::span<UpdateTensor>)>& fn);
std::vector<OwnedTensor> owned(Strategy& strategy);
/// Calls Optimizer::evaluation_weights(). The result must be like the slice's value.
at::Tensor evaluation_weights(const Optimizer& optimizer, const Slice& slice);

/// `data` must have been constructed with `context`.
Batch next(Data& data, const DataContext& context);
/// The functions of a tracker. They rethrow RetryAfter unchanged, because trackers may throw it.
std::string inactive(Tracker& tracker);
void check(Tracker& tracker, const RunInfo& run);
void start(Tracker& tracker, const RunInfo& run);
void deliver(Tracker& tracker, std::span<const Event> events);
void record(Tracker& tracker, std::span<const Record> records);
void finish(Tracker& tracker, RunStatus status);
void upload(Tracker& tracker, const std::filesystem::path& file, const Record& record);
void upload_checkpoint(Tracker& tracker, const std::filesystem::path& folder,
                       const Record& checkpoint);
bool uploads(Tracker& tracker);
std::string download(Tracker& tracker, const std::string& id, const std::filesystem::path& folder);
bool uploads_checkpoint(Tracker& tracker, const Record& checkpoint);
nlohmann::json config(const Format& format, const ModelDescription& model, const TokenIds& ids);

}  // namespace dsv3::checked
