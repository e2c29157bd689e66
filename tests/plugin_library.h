// Opens a plugin library with dlopen, without a registry or a stamp check, to test its components.
#pragma once

#include <dlfcn.h>
#include <map>
#include <memory>
#include <string>

#include <dsv3/sdk/data.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/options.h>
#include <dsv3/sdk/registrar.h>
#include <dsv3/sdk/tokenizer.h>

namespace dsv3::tests {

/// Returns the first component that libdsv3_<library>.so registers. The library is opened once and
/// never closed.
inline const Registration& registration(const std::string& library) {
  static std::map<std::string, Registrar> opened;
  if (const auto it = opened.find(library); it != opened.end())
    return it->second.registrations().at(0);
  const std::string path =
      std::string(DSV3_BUILD_DIR) + "/lib/dsv3/plugins/libdsv3_" + library + ".so";
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw Error(dlerror());
  auto* fill = reinterpret_cast<void (*)(Registrar&)>(dlsym(handle, "dsv3_register_plugin"));
  if (!fill) throw Error(dlerror());
  fill(opened[library]);
  return opened[library].registrations().at(0);
}

inline std::shared_ptr<Tokenizer> make_tokenizer(const std::string& name,
                                                 const OptionValues& values = {}) {
  const Registration& component = registration("tokenizer_" + name);
  return construct<Tokenizer>(component, values);
}

inline std::shared_ptr<Data> make_data(const std::string& name, const OptionValues& values,
                                       const DataContext& context) {
  const Registration& component = registration("data_" + name);
  return construct<Data>(component, values, context);
}

}  // namespace dsv3::tests
