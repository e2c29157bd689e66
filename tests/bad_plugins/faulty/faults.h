// Components that fail as option `fault` says. Each wraps a sound component, the one of the plugin
// templates where there is one. Faults that any kind can have are here, those of one kind are in
// its file.
#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

#include <dsv3/sdk/options.h>
#include <dsv3/sdk/registrar.h>

namespace faulty {

struct FaultyOptions {
  std::string fault = "none";
  int64_t after = 0;
  static void describe(dsv3::OptionSchema<FaultyOptions>& s) {
    s.add("fault", &FaultyOptions::fault, "which fault the component has");
    s.add("after", &FaultyOptions::after, "calls that succeed before it").min(0);
  }
};

class Fault {
 public:
  /// Of the constructor of a component.
  explicit Fault(const FaultyOptions& options);
  /// Of its destructor.
  ~Fault();
  Fault(const Fault&) = delete;
  Fault& operator=(const Fault&) = delete;

  /// Called where the component does its work: counts the call, and runs a fault that any kind can
  /// have.
  void work();
  /// Whether this kind's own fault is due: after `after` calls, as work() counts them.
  bool is(const char* name) const { return due() && fault_ == name; }

 private:
  bool due() const { return after_ == 0 || calls_ > after_; }

  std::string fault_;
  int64_t after_, calls_ = 0;
};

/// y, or a result that a layer must not return for x.
at::Tensor spoiled(const Fault& fault, const at::Tensor& x, at::Tensor y);

void register_attention(dsv3::Registrar& registrar);
void register_data(dsv3::Registrar& registrar);
void register_feed_forward(dsv3::Registrar& registrar);
void register_optimizer(dsv3::Registrar& registrar);
void register_position(dsv3::Registrar& registrar);
void register_schedule(dsv3::Registrar& registrar);
void register_strategy(dsv3::Registrar& registrar);
void register_tokenizer(dsv3::Registrar& registrar);
void register_tracker(dsv3::Registrar& registrar);

}  // namespace faulty
