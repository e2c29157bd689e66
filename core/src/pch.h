// The precompiled header: what nearly every file that touches tensors includes. Nothing of dsv3
// itself, so that a change here does not rebuild the world.
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
