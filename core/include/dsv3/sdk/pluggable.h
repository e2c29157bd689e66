// Base class of all component interfaces.
#pragma once

namespace dsv3 {

struct Callee;  // identity of a component; defined by the core

/// A component. The core stores the component's identity in it, so that errors can name the
/// component whose call failed.
class Pluggable {
 public:
  virtual ~Pluggable();
  /// For the core only. Null if the object was not constructed by dsv3::make.
  const Callee* callee() const { return callee_; }
  void set_callee(const Callee& callee) { callee_ = &callee; }

 private:
  const Callee* callee_ = nullptr;
};

}  // namespace dsv3
