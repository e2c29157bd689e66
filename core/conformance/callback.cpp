// Conformance checks for callbacks.
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include <dsv3/sdk/callback.h>

#include "conformance/suite.h"

namespace dsv3::conformance {
namespace {

constexpr int64_t kSteps = 40, kLogEvery = 2, kValidateEvery = 4;

/// Records the steps at which a callback stops the run.
class Stops final : public RunControl {
 public:
  void stop(const std::string& reason) override {
    require(!reason.empty(), "stop() without a reason");
    steps.push_back(step);
  }
  int64_t step = 0;
  std::vector<int64_t> steps;
};

/// A run without training, whose loss falls at first and then stays constant.
class Run {
 public:
  explicit Run(const Subject& subject) : callback(construct<Callback>(subject)) {}

  void start(bool resumed = false) {
    callback->on_run_start({"conformance", "", "conformance", "dsv3: 1\n", resumed});
  }
  void step(int64_t number) {
    stops.step = number;
    const bool logged = number % kLogEvery == 0;
    if (logged && callback->watches_updates()) update(number);
    callback->on_step_end({number, kSteps, number * 64}, stops);
    if (logged) callback->on_metrics(event(number), stops);
    if (number % kValidateEvery == 0) callback->on_checkpoint_saved({number, "step"});
  }
  void steps(int64_t first, int64_t last) {
    for (int64_t number = first; number <= last; ++number) step(number);
  }

  static Event event(int64_t step) {
    const double loss = 5.0 / double(std::min<int64_t>(step, 12));
    Event event{step / kLogEvery, step, step * 64, 1764000000.0 + double(step), {}};
    event.metrics = {{"train/loss", loss}, {"train/total_loss", loss}, {"train/grad_norm", 1.0}};
    if (step % kValidateEvery == 0) event.metrics.emplace_back("val/loss", loss);
    return event;
  }

  std::shared_ptr<Callback> callback;
  Stops stops;

 private:
  void update(int64_t number) {
    const std::vector<int64_t> shape{6, 4};
    const Range range{"layers.0.attention.q.weight", shape, {0, 0}, shape, 0, 24};
    const at::Tensor grad = at::arange(1, 25, at::kFloat).view({6, 4}) / double(number);
    const std::vector<ParameterUpdate> updates{
        {range, Role::matrix, "adamw", false, grad, grad * -1e-3, grad / 10}};
    callback->on_update(updates, Metrics());
    require(at::equal(grad * -1e-3, updates[0].change), "on_update() changed its arguments");
  }
};

}  // namespace

void callback_checks(const AddCheck& check) {
  check("events", "handles all events of a run", [](const Subject& subject) {
    Run run(subject);
    run.start();
    run.steps(1, kSteps);
    run.callback->on_run_end(RunStatus::finished);
  });
  check("values", "accepts NaN, infinity and unknown metrics", [](const Subject& subject) {
    Run run(subject);
    run.start();
    Event event = Run::event(2);
    for (auto& [name, value] : event.metrics) value = std::numeric_limits<double>::quiet_NaN();
    event.metrics.emplace_back("a new metric", HUGE_VAL);
    run.callback->on_metrics(event, run.stops);
    event.metrics.clear();
    run.callback->on_metrics(event, run.stops);
    const nlohmann::json numbers = run.callback->state().flatten();
    for (const auto& [path, value] : numbers.items())
      require(!value.is_number_float() || std::isfinite(value.get<double>()),
              "state() has a number at '", path,
              "' that is not finite, which checkpoints cannot store");
    run.callback->on_run_end(RunStatus::failed);
  });
  check("state", "resumes from a saved state as if it had not stopped", [](const Subject& subject) {
    for (const int64_t cut : {1, 9, 20, 33}) {
      Run straight(subject), first(subject), second(subject);
      straight.start();
      straight.steps(1, kSteps);
      first.start();
      first.steps(1, cut);
      const std::string saved = first.callback->state().dump();
      require(saved.size() < 1 << 16, "state() has ", saved.size(),
              " bytes; checkpoints need a small state");
      second.callback->load_state(nlohmann::json::parse(saved));
      second.start(true);
      second.steps(cut + 1, kSteps);
      std::vector<int64_t> stops = first.stops.steps;
      stops.insert(stops.end(), second.stops.steps.begin(), second.stops.steps.end());
      require(stops == straight.stops.steps, "a callback that was resumed at step ", cut,
              " stops the run at other steps than one that was not");
      require(second.callback->state() == straight.callback->state(),
              "state() of a callback that was resumed at step ", cut, " is ",
              second.callback->state().dump(), ", but that of one that was not is ",
              straight.callback->state().dump());
    }
  });
  check("memory", "frees its memory", [](const Subject& subject) {
    Run run(subject);
    run.start();
    int64_t number = 0;
    require_steady_memory([&] { run.step(++number); });
  });
}

}  // namespace dsv3::conformance
