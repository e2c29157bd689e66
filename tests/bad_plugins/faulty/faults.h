// Components that go wrong as option `fault` tells: a sound component inside, the one that plugin
// templates start from where there is one, and a fault around it. What any component can do to its
// process is here, what only one kind can do wrong stands with that kind.
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
    s.add("fault", &FaultyOptions::fault, "what goes wrong");
    s.add("after", &FaultyOptions::after, "calls that go well before").min(0);
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

  /// Where the component does its work: counts the call, and misbehaves if it is to do what every
  /// kind can do wrong.
  void work();
  /// Whether this kind's own fault is due: from the call on that `after` tells, as work() counts.
  bool is(const char* name) const { return due() && fault_ == name; }

 private:
  bool due() const { return after_ == 0 || calls_ > after_; }

  std::string fault_;
  int64_t after_, calls_ = 0;
};

/// y, or what a layer must not give back for x.
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
