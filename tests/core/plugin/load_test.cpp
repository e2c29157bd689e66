// Tests plugin loading: every fault has a specific error message, and no fault terminates the
// process.
#include <dsv3/sdk/stamp.h>
#include <dsv3/support/sha256.h>

#include "fixtures.h"
#include "plugin/stamp.h"

using Catch::Matchers::Contains;
using dsv3::ComponentSpec;
using dsv3::Plugins;
using dsv3::Schedule;

namespace {

void check_good_still_works() {
  Plugins plugins({{registry("good")}});
  ComponentSpec spec = schedule("halving");
  spec.options["steps"] = int64_t{4};
  CHECK(dsv3::make<Schedule>(plugins, spec)->factor(8, 100) == 0.25);
}

}  // namespace

TEST_CASE("a valid plugin is loaded and constructed with its options, and its digest is recorded") {
  check_good_still_works();
  const auto loaded = dsv3::loaded_libraries();
  const auto it = std::find_if(loaded.begin(), loaded.end(),
                               [](const auto& one) { return one.name == "fixture_good"; });
  REQUIRE(it != loaded.end());
  CHECK(it->version == "1.2.3");
  CHECK(it->sha256 == dsv3::sha256(get(library("good"))));
  CHECK(it->path == std::filesystem::canonical(library("good")));
}

TEST_CASE("if a plugin's stamp differs in one field, the error names the field and both values") {
  struct Case {
    std::string fixture, line;
  };
  const dsv3::Stamp host = dsv3::host_stamp();
  const auto [fixture, line] = GENERATE_COPY(values<Case>({
      {"other_sdk", "SDK:             plugin 9.9.9 (headers " + host.headers.substr(0, 8) +
                        "), this dsv3 " + host.sdk + " (headers " + host.headers.substr(0, 8) +
                        ")"},
      {"other_headers", "SDK:             plugin " + host.sdk + " (headers 01234567), this dsv3 " +
                            host.sdk + " (headers " + host.headers.substr(0, 8) + ")"},
      {"other_cxx_abi",
       "C++ ABI:         plugin libcpp_abi1, this dsv3 libstdcpp_gxx_abi_1xxx_cxx11_1"},
      {"other_debug", "debug iterators: plugin on, this dsv3 off"},
      {"other_torch", "LibTorch:        plugin 2.9.1, this dsv3 " TORCH_VERSION},
      {"other_cuda", "CUDA:            plugin 12, this dsv3 none"},
  }));
  const std::string error = load_error(library(fixture));
  CHECK_THAT(error, Contains("cannot load plugin 'fixture_" + fixture + "' (" +
                             library(fixture).string() + ")\n  " + line + "\n  hint: rebuild it"));
  CHECK_THAT(error, Contains("requested by nano.yaml:5:13"));
  // The error has four lines: a title, the differing field, a hint, and where the plugin was
  // requested.
  CHECK(std::count(error.begin(), error.end(), '\n') == 3);
  check_good_still_works();
}

TEST_CASE("all differing fields are reported at once") {
  const std::string error = load_error(library("other_all"));
  CHECK_THAT(error, Contains("SDK:") && Contains("C++ ABI:") && Contains("LibTorch:"));
  CHECK_THAT(error, !Contains("CUDA:") && !Contains("iterators"));
}

TEST_CASE("a plugin built by a different compiler with the same ABI loads") {
  Plugins plugins({});
  CHECK(plugins.find(schedule("halving", library("other_compiler").string())).name == "halving");
}

TEST_CASE("each fault in a plugin library has a specific error message") {
  struct Case {
    std::string fixture, text;
  };
  const auto [fixture, text] = GENERATE(values<Case>({
      {"no_stamp", "not a dsv3 plugin; build it with dsv3_add_plugin()"},
      {"throws_registering", "failed to register its components: no licence found"},
      {"throws_a_number",
       "failed to register its components: threw a value that is not a std::exception"},
      {"throws_statically", ": thrown by a static initialiser"},
      {"broken_word",
       "registers schedule/halving in DSV3_PLUGIN, but dsv3_add_plugin(PROVIDES) lists "
       "schedule/quarters"},
      {"registers_twice", "registers schedule/halving twice"},
      {"no_entry_point", "registers no component; define DSV3_PLUGIN(registrar)"},
      {"missing_symbol", "no loaded library defines 'defined_nowhere()', which it needs"},
  }));
#ifdef __SANITIZE_THREAD__  // exceptions cannot pass through ThreadSanitizer's dlopen
  if (fixture == "throws_statically") return;
#endif
  const std::string error = load_error(library(fixture));
  CHECK_THAT(error, Contains(library(fixture).string()));
  CHECK_THAT(error, Contains(text));
  CHECK_THAT(error, Contains("requested by nano.yaml:5:13"));
  SECTION("a second request reports the same error without loading the library again") {
    CHECK(load_error(library(fixture)) == error);
  }
  check_good_still_works();
}

TEST_CASE("a library that failed to load is not opened again, even if the file has changed") {
  TemporaryFolder folder;
  const auto path = folder / "libdsv3_x.so";
  put(path, "not a library");
  const std::string error = load_error(path);
  CHECK_THAT(error, Contains("not a shared library"));
  std::filesystem::copy_file(library("good"), path,
                             std::filesystem::copy_options::overwrite_existing);
  CHECK(load_error(path) == error);
}

TEST_CASE(
    "a missing library file is an error, and so is a component that the library does not provide") {
  CHECK_THAT(load_error("/nowhere/libx.so"),
             Contains("cannot open plugin library /nowhere/libx.so: No such file"));
  CHECK_THAT(load_error(library("good"), "doubling"),
             Contains("has no schedule 'doubling'; it provides schedule/halving"));
}

TEST_CASE("errors from a constructor name the component and its location in the YAML file") {
  struct Case {
    std::string what, text;
    dsv3::ExitCode code;
  };
  const std::string foreign = "schedule 'thrower' (constructor), nano.yaml:5:13, plugin " +
                              std::filesystem::canonical(library("throws_making")).string() + ": ";
  const auto [what, text, code] = GENERATE_COPY(values<Case>({
      {"error", "schedule 'thrower' (nano.yaml:5:13): text.txt is empty", dsv3::ExitCode::data},
      {"standard", foreign + "index 7", dsv3::ExitCode::plugin},
      {"number", foreign + "threw a value that is not a std::exception; throw dsv3::Error instead",
       dsv3::ExitCode::plugin},
  }));
  Plugins plugins({{registry("throws_making")}});
  ComponentSpec spec = schedule("thrower");
  spec.options["what"] = what;
  CHECK(error_of([&] { dsv3::make<Schedule>(plugins, spec); }, code) == text);
}
