// Estimates the cost of an operator on an H100, as a lower bound.
#pragma once

#include <string>
#include <vector>

#include <ATen/core/ivalue.h>

namespace fake_cuda {

struct Cost {
  double bytes = 0;    ///< bytes read and written, counting each argument and result once
  double flops = 0;    ///< FLOPs of matrix products and attention; 0 for other operators
  double seconds = 0;  ///< roofline model: maximum of transfer, compute and launch time
};

Cost cost_of(const std::string& name, const std::vector<c10::IValue>& arguments,
             const std::vector<c10::IValue>& results);

}  // namespace fake_cuda
