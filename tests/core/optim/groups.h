// Optimizer groups, parameters and strategies for tests of OptimizerSet.
#pragma once

#include <ATen/ATen.h>

#include <dsv3/runtime/optimizer_set.h>

#include "support/built_plugins.h"

namespace dsv3::test {

inline OptimizerMember member(const std::string& name, std::shared_ptr<Optimizer> optimizer,
                              std::vector<std::string> roles = {}, std::string match = "") {
  OptimizerMember result;
  result.spec.name = name;
  result.spec.roles = std::move(roles);
  result.spec.match = std::move(match);
  result.spec.component.plugin = name;
  result.spec.component.origin = {"run.yaml", 7, 3};
  result.optimizer = std::move(optimizer);
  return result;
}

inline Parameter parameter(const std::string& name, Role role, at::IntArrayRef shape,
                           int64_t matrices = 1) {
  ParamSpec spec;
  spec.role = role;
  spec.matrices = matrices;
  return {name, at::ones(shape).set_requires_grad(true), spec};
}

inline std::vector<Parameter> some_parameters() {
  return {parameter("embedding.weight", Role::embedding, {10, 4}),
          parameter("layers.0.attention.q.weight", Role::matrix, {4, 4}),
          parameter("layers.0.norm.weight", Role::norm, {4}),
          parameter("layers.1.experts.up.weight", Role::matrix, {3, 8, 4}, 6),
          parameter("head.weight", Role::head, {10, 4})};
}

inline UnitSpec unit_of(const std::vector<Parameter>& parameters, const OptimizerSet& set) {
  UnitSpec unit;
  unit.name = "all";
  for (const Parameter& p : parameters) {
    UnitParam param;
    param.name = p.name;
    param.tensor = p.tensor;
    param.global_shape = p.tensor.sizes().vec();
    param.box_offset.assign(param.global_shape.size(), 0);
    param.matrices = p.spec.matrices;
    param.group = set.group_of(p);
    unit.params.push_back(param);
  }
  return unit;
}

/// Returns a strategy that has adopted the parameters.
inline std::shared_ptr<Strategy> strategy_with(const std::vector<Parameter>& parameters,
                                               const OptimizerSet& set,
                                               const std::string& name = "single",
                                               at::ScalarType dtype = at::kFloat) {
  StrategyContext context;
  context.compute_dtype = dtype;
  auto strategy = make_built<Strategy>(Kind::strategy, name, {}, context);
  strategy->adopt(unit_of(parameters, set));
  strategy->ready(set.specs());
  return strategy;
}

}  // namespace dsv3::test
