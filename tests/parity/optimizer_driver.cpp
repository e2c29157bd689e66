// Runs an optimizer plugin on the given values and gradients, for test_optimizers.py.
//   parity_optimizer OPTIMIZER JSON-OPTIONS < input > output
// The input is the number of tensors (int64); for each tensor, rows and cols (int64) and rows *
// cols fp32 values; the number of updates (int64); and for each update, the learning-rate factor
// (fp64) and a gradient for each tensor. The output is all values after each update.
#include <iostream>

#include <ATen/ATen.h>

#include <dsv3/sdk/optimizer.h>
#include <dsv3/support/json.h>

#include "support/built_plugins.h"

namespace {

template <class T>
T read_number() {
  T value;
  std::cin.read(reinterpret_cast<char*>(&value), sizeof value);
  if (!std::cin) throw std::runtime_error("unexpected end of input");
  return value;
}

at::Tensor read_tensor(at::IntArrayRef shape) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  std::cin.read(static_cast<char*>(tensor.mutable_data_ptr()), std::streamsize(tensor.nbytes()));
  if (!std::cin) throw std::runtime_error("unexpected end of input");
  return tensor;
}

dsv3::OptionValues read_options(const std::string& text) {
  dsv3::OptionValues options;
  const dsv3::Json json = dsv3::parse_json(text, "options");
  for (const auto& [key, value] : json.items()) {
    if (value.is_boolean())
      options[key] = value.get<bool>();
    else if (value.is_number_integer())
      options[key] = value.get<int64_t>();
    else if (value.is_number())
      options[key] = value.get<double>();
    else
      options[key] = value.get<std::string>();
  }
  return options;
}

void run(const std::string& name, const dsv3::OptionValues& options) {
  const auto optimizer =
      dsv3::test::make_built<dsv3::Optimizer>(dsv3::Kind::optimizer, name, options);
  std::vector<at::Tensor> values;
  std::vector<std::vector<at::Tensor>> state;
  for (int64_t left = read_number<int64_t>(); left > 0; --left) {
    const auto rows = read_number<int64_t>(), cols = read_number<int64_t>();
    values.push_back(read_tensor({rows, cols}));
    state.emplace_back();
    for (const dsv3::StateSlot& slot : optimizer->slots())
      state.back().push_back(at::zeros({rows, cols}, slot.dtype));
  }
  const std::vector<dsv3::Range> ranges(values.size());
  const auto updates = read_number<int64_t>();
  for (int64_t update = 1; update <= updates; ++update) {
    const auto factor = read_number<double>();
    std::vector<dsv3::Slice> slices;
    for (size_t i = 0; i < values.size(); ++i)
      slices.push_back({ranges[i], values[i], read_tensor(values[i].sizes()), state[i]});
    optimizer->step(slices, {update, factor});
    for (const at::Tensor& value : values)
      std::cout.write(static_cast<const char*>(value.const_data_ptr()),
                      std::streamsize(value.nbytes()));
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc != 3) throw std::runtime_error("usage: parity_optimizer OPTIMIZER JSON-OPTIONS");
    run(argv[1], read_options(argv[2]));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
