// A library to preload into dsv3-run. It measures the CPU time that the training thread spends in
// calls for tracking, and writes it to the file $DSV3_TRACKING_COST when the run ends.
#include <cstdlib>
#include <ctime>
#include <dlfcn.h>
#include <fstream>
#include <unistd.h>
#include <utility>

#include <dsv3/runtime/metrics_file.h>
#include <dsv3/support/json.h>

#include "train/tracking.h"

namespace {

// CPU time of this thread, in seconds.
double cpu_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return double(time.tv_sec) + double(time.tv_nsec) * 1e-9;
}

// Of the training thread.
struct Costs {
  double start = 0, steps = 0, end = 0;  // of check() and start(), of each step, of finish()
  int64_t calls = 0;
  int depth = 0;  // calls for tracking that have not returned
} costs;

// The function of libdsv3 that `function`, which is in this library, replaces.
void* replaced(void* function) {
  Dl_info info{};
  dladdr(function, &info);
  return dlsym(RTLD_NEXT, info.dli_sname);
}

// Calls what `function` replaces, and adds the time to `cost`. Calls inside other calls, and those
// of other threads, are not counted.
template <class R, class C, class... P, class... A>
R measure(double& cost, R (C::*function)(P...), C* self, A&&... arguments) {
  const auto next =
      reinterpret_cast<R (*)(C*, P...)>(replaced(reinterpret_cast<void*>(self->*function)));
  if (gettid() != getpid() || costs.depth > 0) return next(self, std::forward<A>(arguments)...);
  struct Measurement {
    double& cost;
    double begin = cpu_time();
    explicit Measurement(double& c) : cost(c) { ++costs.depth; }
    ~Measurement() { cost += cpu_time() - begin, --costs.depth, ++costs.calls; }
  } const measurement(cost);
  return next(self, std::forward<A>(arguments)...);
}

}  // namespace

namespace dsv3 {

bool MetricsFile::append(Event& event) {
  return measure(costs.steps, &MetricsFile::append, this, event);
}
void Tracking::check(const RunInfo& info, std::vector<NamedTracker> trackers) {
  measure(costs.start, &Tracking::check, this, info, std::move(trackers));
}
void Tracking::start(const RunInfo& info, int64_t step, const record::Values& changes,
                     const std::vector<record::Dataset>& datasets,
                     const std::vector<StoredCheckpoint>& checkpoints) {
  measure(costs.start, &Tracking::start, this, info, step, changes, datasets, checkpoints);
}
void Tracking::record(int64_t step, Record::Content content) {
  measure(costs.steps, &Tracking::record, this, step, std::move(content));
}
void Tracking::record_file(int64_t step, const std::filesystem::path& file) {
  measure(costs.steps, &Tracking::record_file, this, step, file);
}
void Tracking::checkpoint_saved(const StoredCheckpoint& checkpoint) {
  measure(costs.steps, &Tracking::checkpoint_saved, this, checkpoint);
}
void Tracking::notify() {
  measure(costs.steps, &Tracking::notify, this);
}
void Tracking::finish(RunStatus status, int64_t step) {
  measure(costs.end, &Tracking::finish, this, status, step);
  std::ofstream(std::getenv("DSV3_TRACKING_COST")) << Json{{"thread", cpu_time()},
                                                           {"start", costs.start},
                                                           {"steps", costs.steps},
                                                           {"end", costs.end},
                                                           {"calls", costs.calls}};
}

}  // namespace dsv3
