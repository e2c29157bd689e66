// Components that fail as option `fault` specifies. Each wraps a working component, that of the
// plugin template if the kind has a template. Faults that any kind can have are here; faults of one
// kind are in that kind's file.
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
    s.add("after", &FaultyOptions::after, "calls that succeed before the fault").min(0);
  }
};

class Fault {
 public:
  /// Called in a component's constructor.
  explicit Fault(const FaultyOptions& options);
  /// Called in its destructor.
  ~Fault();
  Fault(const Fault&) = delete;
  Fault& operator=(const Fault&) = delete;

  /// Called where the component does its work: counts the call, and runs a fault that any kind can
  /// have.
  void work();
  /// Whether the fault `name` of this kind is selected and `after` calls of work() have succeeded.
  bool is(const char* name) const { return due() && fault_ == name; }

 private:
  bool due() const { return after_ == 0 || calls_ > after_; }

  std::string fault_;
  int64_t after_, calls_ = 0;
};

/// Returns y, or the invalid result for input x that the fault selects.
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
