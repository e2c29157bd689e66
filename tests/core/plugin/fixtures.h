// Paths of the fixtures in tests/bad_plugins, and functions that load them.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include <catch2/catch.hpp>

#include <dsv3/runtime/plugins.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/schedule.h>

#include "core/support/temporary_folder.h"

inline std::filesystem::path library(const std::string& fixture) {
  return std::filesystem::path(DSV3_FIXTURES) / "lib/dsv3/plugins" /
         ("libdsv3_fixture_" + fixture + ".so");
}

inline std::filesystem::path registry(const std::string& fixture) {
  return std::filesystem::path(DSV3_FIXTURES) / "registries" / (fixture + ".toml");
}

inline dsv3::ComponentSpec schedule(const std::string& name, const std::string& library_path = "") {
  dsv3::ComponentSpec spec;
  spec.kind = dsv3::Kind::schedule;
  spec.plugin = name;
  spec.library = library_path;
  spec.origin = {"nano.yaml", 5, 13};
  return spec;
}

/// Returns the message of the dsv3::Error that `call` throws, and checks that its exit code is
/// `code`.
inline std::string error_of(const std::function<void()>& call,
                            dsv3::ExitCode code = dsv3::ExitCode::plugin) {
  try {
    call();
  } catch (const dsv3::Error& e) {
    CHECK(static_cast<int>(e.code()) == static_cast<int>(code));
    return e.what();
  }
  FAIL("nothing was thrown");
  return "";
}

/// Returns the error message from loading a library with the `library:` option.
inline std::string load_error(const std::filesystem::path& path,
                              const std::string& name = "halving") {
  dsv3::Plugins plugins({});
  return error_of([&] { plugins.find(schedule(name, path.string())); });
}
