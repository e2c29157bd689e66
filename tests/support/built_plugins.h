// Provides this build's plugin libraries to tests that need real components.
#pragma once

#include <memory>
#include <string>

#include <dsv3/runtime/plugins.h>

namespace dsv3::test {

/// Returns the plugins in the build's registries and in the flat-buffer test strategy's registry.
inline Plugins& built_plugins() {
  static Plugins plugins({{DSV3_BUILD_DIR}, {DSV3_BUILD_DIR "/tests/plugins/flat"}});
  return plugins;
}

template <class Base, class... Context>
std::shared_ptr<Base> make_built(Kind kind, const std::string& name, const OptionValues& options,
                                 const Context&... context) {
  ComponentSpec spec;
  spec.kind = kind;
  spec.plugin = name;
  spec.options = options;
  spec.origin.source = "test";
  return make<Base>(built_plugins(), spec, context...);
}

}  // namespace dsv3::test
