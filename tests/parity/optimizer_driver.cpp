// Runs an optimizer plugin on the given values and gradients, for optimizer_driver.py.
//   optimizer_driver OPTIMIZER JSON-OPTIONS [PLUGIN-PATH] < input > output
// The input is the number of tensors (int64); for each tensor, rows and cols (int64) and rows *
// cols fp32 values; the number of updates (int64); and for each update, the learning-rate factor
// (fp64) and a gradient for each tensor. The output is, for each update, all values after it,
// followed by all evaluation weights if the optimizer has them.
#include <iostream>

#include <ATen/ATen.h>

#include <dsv3/runtime/optimizer_set.h>
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

void write_tensor(const at::Tensor& tensor) {
  const at::Tensor contiguous = tensor.contiguous();
  std::cout.write(static_cast<const char*>(contiguous.const_data_ptr()),
                  std::streamsize(contiguous.nbytes()));
}

std::shared_ptr<dsv3::Optimizer> make_optimizer(const std::string& name,
                                                const dsv3::OptionValues& options,
                                                const std::string& plugin_path) {
  if (plugin_path.empty())
    return dsv3::test::make_built<dsv3::Optimizer>(dsv3::Kind::optimizer, name, options);
  dsv3::Plugins plugins({{plugin_path}});
  dsv3::ComponentSpec spec;
  spec.kind = dsv3::Kind::optimizer;
  spec.plugin = name;
  spec.options = options;
  return dsv3::make<dsv3::Optimizer>(plugins, spec);
}

void run(dsv3::Optimizer& optimizer) {
  std::vector<at::Tensor> values;
  std::vector<std::vector<at::Tensor>> state;
  for (int64_t left = read_number<int64_t>(); left > 0; --left) {
    const auto rows = read_number<int64_t>(), cols = read_number<int64_t>();
    values.push_back(read_tensor({rows, cols}));
    state.push_back(dsv3::zero_state(optimizer.slots(), values.back().sizes(), at::kCPU));
  }
  const std::vector<dsv3::Range> ranges(values.size());
  const auto updates = read_number<int64_t>();
  for (int64_t update = 1; update <= updates; ++update) {
    const auto factor = read_number<double>();
    std::vector<dsv3::Slice> slices;
    for (size_t i = 0; i < values.size(); ++i)
      slices.push_back({ranges[i], values[i], read_tensor(values[i].sizes()), state[i]});
    optimizer.step(slices, {update, factor});
    for (const at::Tensor& value : values) write_tensor(value);
    if (optimizer.has_evaluation_weights())
      for (const dsv3::Slice& slice : slices) write_tensor(optimizer.evaluation_weights(slice));
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc < 3 || argc > 4)
      throw std::runtime_error("usage: optimizer_driver OPTIMIZER JSON-OPTIONS [PLUGIN-PATH]");
    run(*make_optimizer(argv[1], read_options(argv[2]), argc == 4 ? argv[3] : ""));
    return 0;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
