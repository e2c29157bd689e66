// Faulty components for tests. The option `fault` selects the fault. Each component wraps a working
// component of the same kind, taken from the plugin template if there is one. Faults that apply to
// every kind are in faults.cpp, and faults specific to one kind are in that kind's file.
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
    s.add("fault", &FaultyOptions::fault, "fault to simulate");
    s.add("after", &FaultyOptions::after, "number of calls that succeed before the fault").min(0);
  }
};

class Fault {
 public:
  /// Triggers the selected fault if it is a constructor fault.
  explicit Fault(const FaultyOptions& options);
  /// Triggers the selected fault if it is a destructor fault.
  ~Fault();
  Fault(const Fault&) = delete;
  Fault& operator=(const Fault&) = delete;

  /// Counts a call to the component, and triggers the selected fault unless it is kind-specific.
  void work();
  /// Returns whether the kind-specific fault `name` is selected and must occur now.
  bool is(const char* name) const { return due() && fault_ == name; }

 private:
  bool due() const { return after_ == 0 || calls_ > after_; }

  std::string fault_;
  int64_t after_, calls_ = 0;
};

/// Returns the component's output `y` for input `x`, or an invalid tensor if the selected fault
/// requires one.
at::Tensor spoiled(const Fault& fault, const at::Tensor& x, at::Tensor y);

void register_attention(dsv3::Registrar& registrar);
void register_callback(dsv3::Registrar&);
void register_data(dsv3::Registrar& registrar);
void register_feed_forward(dsv3::Registrar& registrar);
void register_optimizer(dsv3::Registrar& registrar);
void register_position(dsv3::Registrar& registrar);
void register_schedule(dsv3::Registrar& registrar);
void register_strategy(dsv3::Registrar& registrar);
void register_tokenizer(dsv3::Registrar& registrar);
void register_tracker(dsv3::Registrar& registrar);

}  // namespace faulty
