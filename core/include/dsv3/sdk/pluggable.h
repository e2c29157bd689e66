// Base class of all component interfaces.
#pragma once

namespace dsv3 {

struct Callee;  // describes a component in error messages; defined by the core

/// Base class of all components. The core stores a description of the component in it, so that
/// errors can name the component whose call failed.
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
