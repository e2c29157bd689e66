// Where the time of a run goes, as spans.
#pragma once

#include <array>
#include <exception>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <ATen/record_function.h>
#include <c10/core/Device.h>

#include <dsv3/sdk/tracker.h>

namespace dsv3 {

/// Records one tree of spans for each stage, over the whole run: a resumed run continues its trees,
/// and a step that it repeats replaces the spans of that step. Of the stages data and train, only
/// every Nth step and the last one are recorded. Used by the training thread only.
class Trace {
 public:
  enum class Stage { data, train, eval };
  using Sink = std::function<void(int64_t step, record::Span span)>;

  /// `every`: interval between recorded steps; 0 = record nothing. On a GPU, the end of a recorded
  /// span of the stages data and train waits for `device`, because operators are only queued.
  Trace(int64_t every, at::Device device, Sink sink);
  /// Nothing is recorded before this call. `step`: the number of completed steps.
  void start(const RunInfo& run, int64_t step);
  /// Later spans belong to this step, from 1. The last step is recorded whatever its number.
  void begin_step(int64_t step, bool is_last);
  /// Records the roots of the trees, which last from the first start of the run until now.
  void finish(RunStatus status);

  /// A span that lasts as long as this object, which LibTorch's profiler sees as well. Its parent
  /// is the enclosing span of the same stage.
  class Scope {
   public:
    Scope(Trace& trace, Stage stage, const char* name);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    void set(const std::string& attribute, const std::string& value);

   private:
    at::RecordFunction profiled_;
    Trace* trace_ = nullptr;  // null = not recorded
    const Stage stage_;
    record::Span span_;
    double start_ = 0;
    const int exceptions_ = std::uncaught_exceptions();
  };

  /// If spans of `stage` are recorded now, records one from `start` to `end`, both of
  /// seconds_now(), below `parent`; "" = the root. Returns its id.
  std::string add(Stage stage, const char* name, double start, double end,
                  const std::string& parent = "");

 private:
  static constexpr size_t kStages = 3;
  bool records(Stage stage) const { return started_ && (is_sampled_ || stage == Stage::eval); }
  record::Span new_span(Stage stage, const std::string& name, const std::string& parent);
  double wall(double seconds) const { return seconds + offset_; }

  const int64_t every_;
  const at::Device device_;
  const Sink sink_;
  RunInfo run_;
  bool started_ = false, is_sampled_ = false;
  double offset_ = 0;  // from seconds_now() to seconds since the epoch
  int64_t step_ = 0;
  std::map<std::string, int64_t> counts_;               // of a step's spans, by stage and name
  std::array<std::vector<std::string>, kStages> open_;  // ids of the enclosing spans
};

}  // namespace dsv3
