// The precompiled header. It includes what nearly every file that uses tensors needs, but no dsv3
// headers, so that changing a dsv3 header does not rebuild everything.
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>
#include <torch/csrc/autograd/custom_function.h>
