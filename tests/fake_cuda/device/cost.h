// The cost of an operator on an H100, as a lower bound.
#pragma once

#include <string>
#include <vector>

#include <ATen/core/ivalue.h>

namespace fake_cuda {

struct Cost {
  double bytes = 0;    ///< of all arguments and results, each read or written once
  double flops = 0;    ///< of matrix products and attention, 0 for other operators
  double seconds = 0;  ///< the roofline: the longest of transfer, arithmetic and launch
};

Cost cost_of(const std::string& name, const std::vector<c10::IValue>& arguments,
             const std::vector<c10::IValue>& results);

}  // namespace fake_cuda
