#include "train/trace.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <dsv3/support/sha256.h>

#include "support/host.h"
#include "train/tracking.h"

namespace dsv3 {
namespace {

constexpr std::array kNames{"data", "train", "eval"};

const char* name_of(Trace::Stage stage) {
  return kNames.at(size_t(stage));
}

/// The same for the same text, so that a span that is recorded again replaces the earlier one.
std::string id_of(const std::string& text, size_t digits) {
  return sha256(text).substr(0, digits);
}

std::string trace_id(const std::string& uid, Trace::Stage stage) {
  return id_of(uid + " " + name_of(stage), 32);
}

std::string root_id(const std::string& uid, Trace::Stage stage) {
  return id_of(uid + " root " + name_of(stage), 16);
}

}  // namespace

Trace::Trace(int64_t every, at::Device device, Sink sink)
    : every_(every), device_(device), sink_(std::move(sink)) {}

void Trace::start(const RunInfo& run, int64_t step) {
  run_ = run;
  step_ = step;
  started_ = every_ > 0;
  offset_ = wall_seconds() - seconds_now();
}

void Trace::begin_step(int64_t step, bool is_last) {
  step_ = step;
  is_sampled_ = every_ > 0 && (is_last || step % every_ == 0);
  counts_.clear();
}

record::Span Trace::new_span(Stage stage, const std::string& name, const std::string& parent) {
  const std::string place = std::string(name_of(stage)) + " " + name;
  const int64_t index = counts_[place]++;
  const std::string key =
      run_.uid + " " + place + " " + std::to_string(step_) + " " + std::to_string(index);
  return {.trace = trace_id(run_.uid, stage),
          .id = id_of(key, 16),
          .parent = parent.empty() ? root_id(run_.uid, stage) : parent,
          .name = name,
          .attributes = {{"step", std::to_string(step_)}}};
}

std::string Trace::add(Stage stage, const char* name, double start, double end,
                       const std::string& parent) {
  if (!records(stage)) return "";
  record::Span span = new_span(stage, name, parent);
  span.start = wall(start);
  span.end = wall(end);
  const std::string id = span.id;
  sink_(step_, std::move(span));
  return id;
}

void Trace::finish(RunStatus status) {
  if (!started_) return;
  started_ = false;
  for (const Stage stage : {Stage::data, Stage::train, Stage::eval})
    sink_(step_, {.trace = trace_id(run_.uid, stage),
                  .id = root_id(run_.uid, stage),
                  .parent = "",
                  .name = name_of(stage),
                  .start = run_.start_time,
                  .end = wall(seconds_now()),
                  .attributes = {{"run", run_.name},
                                 {"stage", name_of(stage)},
                                 {"status", dsv3::name_of(status)},
                                 {"steps", std::to_string(step_)}}});
}

Trace::Scope::Scope(Trace& trace, Stage stage, const char* name)
    : profiled_(at::RecordScope::USER_SCOPE), stage_(stage) {
  if (profiled_.isActive()) profiled_.before(name);
  if (!trace.records(stage)) return;
  trace_ = &trace;
  std::vector<std::string>& open = trace.open_[size_t(stage)];
  span_ = trace.new_span(stage, name, open.empty() ? "" : open.back());
  open.push_back(span_.id);
  start_ = seconds_now();
}

void Trace::Scope::set(const std::string& attribute, const std::string& value) {
  if (trace_) span_.attributes[attribute] = value;
}

Trace::Scope::~Scope() {
  if (!trace_) return;
  trace_->open_[size_t(stage_)].pop_back();
  const bool failed = std::uncaught_exceptions() > exceptions_;
  if (failed) span_.attributes["status"] = "failed";
  try {
    const bool waits = stage_ != Stage::eval && !trace_->device_.is_cpu();
    if (!failed && waits)
      c10::impl::VirtualGuardImpl(trace_->device_.type())
          .synchronizeDevice(trace_->device_.index());
    span_.start = trace_->wall(start_);
    span_.end = trace_->wall(seconds_now());
    trace_->sink_(trace_->step_, std::move(span_));
  } catch (const std::exception&) {
    // The next operation on the device or in the run folder reports it.
  }
}

}  // namespace dsv3
