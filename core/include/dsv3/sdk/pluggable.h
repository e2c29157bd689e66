// The base class of all kinds' interfaces.
#pragma once

namespace dsv3 {

struct Callee;  // defined by the core

/// A component. The core stores in it which component it is, so that a failing call can be named.
class Pluggable {
 public:
  virtual ~Pluggable();
  /// For the core. Null: the object was not constructed by dsv3::make.
  const Callee* callee() const { return callee_; }
  void set_callee(const Callee& callee) { callee_ = &callee; }

 private:
  const Callee* callee_ = nullptr;
};

}  // namespace dsv3
