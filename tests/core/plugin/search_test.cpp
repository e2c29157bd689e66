// Tests registries: search order, conflicts, aliases, and errors in registry files.
#include <cstdlib>

#include "fixtures.h"

using Catch::Matchers::Contains;
using dsv3::Kind;
using dsv3::Plugins;

namespace {

// Returns a registry entry that maps schedule/<name> to a fixture's library.
std::string entry(const std::string& name, const std::string& library_path,
                  const std::string& version = "1.0.0") {
  return "[[plugin]]\nkind = \"schedule\"\nname = \"" + name + "\"\nlibrary = \"" + library_path +
         "\"\nversion = \"" + version + "\"\nstatus = \"stable\"\nsummary = \"s\"\n";
}
const std::string head = "registry = 1\nset = \"test\"\n";

// Sets an environment variable during its lifetime.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    ::setenv(name, value.c_str(), 1);
  }
  ~Environment() { ::unsetenv(name_); }

 private:
  const char* name_;
};

}  // namespace

TEST_CASE("the first search level that contains a plugin name takes precedence") {
  TemporaryFolder folder;
  std::filesystem::create_directories(folder / "a");
  std::filesystem::create_directories(folder / "b");
  put(folder / "a/one.toml", head + entry("other", "x.so"));
  put(folder / "b/two.toml", head + entry("halving", library("good").string(), "2.0.0"));
  put(folder / "three.toml", head + entry("halving", "never.so", "3.0.0"));
  Plugins plugins({{folder / "a"}, {folder / "b"}, {folder / "three.toml"}});
  REQUIRE(plugins.find_entry(Kind::schedule, "halving"));
  CHECK(plugins.find_entry(Kind::schedule, "halving")->version == "2.0.0");
  CHECK(plugins.find(schedule("halving")).name == "halving");
  CHECK(plugins.find_if_known(Kind::schedule, "nothing") == nullptr);
  SECTION("`library:` takes precedence over all search levels") {
    CHECK(plugins.find(schedule("twin", library("twin").string())).name == "twin");
  }
}

TEST_CASE(
    "the default search order is command line, config.yaml, environment, installation prefix") {
  TemporaryFolder folder;
  const auto made = [&](const char* name) {
    std::filesystem::create_directories(folder / name);
    return (folder / name).string();
  };
  const std::string a = made("a"), b = made("b"), c = made("c"), d = made("d");
  const Environment variable("DSV3_PLUGIN_PATH", c + ":" + d + ":");
  const auto levels = dsv3::plugin_search_levels({a}, {b});
  REQUIRE(levels.size() == 4);
  CHECK(levels[0] == std::vector<std::filesystem::path>{a});
  CHECK(levels[1] == std::vector<std::filesystem::path>{b});
  CHECK(levels[2] == std::vector<std::filesystem::path>{c, d});
  REQUIRE(levels[3].size() == 1);
  CHECK(std::filesystem::equivalent(levels[3][0], DSV3_BUILD_DIR "/registries"));
  CHECK_THAT(error_of([&] {
               dsv3::plugin_search_levels({a}, {b, a + "/gone"});
             }),
             Contains("plugin_paths of config.yaml names " + a + "/gone, which does not exist"));
}

TEST_CASE(
    "if two registries at one search level contain the same plugin name, the error names both") {
  TemporaryFolder folder;
  put(folder / "one.toml",
      head + entry("halving", library("good").string()) + entry("alone", "x.so"));
  put(folder / "two.toml", head + entry("halving", "y.so"));
  Plugins plugins({{folder.path()}});
  CHECK(plugins.find_entry(Kind::schedule, "alone"));
  CHECK_THAT(error_of([&] { plugins.find(schedule("halving")); }),
             Contains("schedule 'halving' is in two registries at the same search level: " +
                      (folder / "one.toml").string() + " and " + (folder / "two.toml").string()) &&
                 Contains("requested by nano.yaml:5:13"));
  SECTION("a registry file that is listed twice counts once") {
    Plugins same({{folder / "one.toml", folder / "one.toml"}});
    CHECK(same.find(schedule("halving")).name == "halving");
  }
}

TEST_CASE("a plugin on a search path cannot replace a built-in one, unless `library:` names it") {
  const std::filesystem::path own = DSV3_BUILD_DIR "/registries";
  const std::string cosine = DSV3_BUILD_DIR "/lib/dsv3/plugins/libdsv3_schedule_cosine.so";
  TemporaryFolder folder;
  put(folder / "r.toml", head + entry("cosine", library("good").string()) +
                             entry("halving", library("good").string()));
  Plugins plugins({{folder.path()}, {own}});
  CHECK_THAT(error_of([&] { plugins.find(schedule("cosine")); }),
             Contains("schedule 'cosine' of " + library("good").string() +
                      " has the name of a built-in plugin (" + cosine + "); rename it, or set") &&
                 Contains("`library: " + library("good").string() + "`") &&
                 Contains("requested by nano.yaml:5:13"));
  CHECK(dsv3::make<dsv3::Schedule>(plugins, schedule("cosine", cosine)));
  CHECK(plugins.find(schedule("halving")).name == "halving");
  CHECK(plugins.find(schedule("constant")).name == "constant");
  SECTION("a second registry that lists the same library does not conflict") {
    put(folder / "r.toml", head + entry("cosine", cosine));
    CHECK(Plugins({{folder.path()}, {own}}).find(schedule("cosine")).name == "cosine");
  }
}

TEST_CASE("a short form on a search path cannot replace a built-in plugin or short form") {
  const auto alias = [](const std::string& kind, const std::string& name) {
    return "[[alias]]\nkind = \"" + kind + "\"\nname = \"" + name + "\"\nyaml = \"x\"\n";
  };
  TemporaryFolder folder;
  put(folder / "r.toml",
      head + alias("schedule", "cosine") + alias("optimizer", "muon") + alias("optimizer", "mine"));
  const Plugins plugins({{folder.path()}, {DSV3_BUILD_DIR "/registries"}});
  CHECK_THAT(error_of([&] { plugins.find_alias(Kind::schedule, "cosine"); }),
             Contains("short form `schedule: cosine` in " + (folder / "r.toml").string() +
                      " has the name of a built-in plugin or short form; rename it"));
  CHECK_THAT(error_of([&] { plugins.find_alias(Kind::optimizer, "muon"); }),
             Contains("short form `optimizer: muon`"));
  CHECK(plugins.find_alias(Kind::optimizer, "mine")->yaml == "x");
  SECTION("an equal short form does not conflict") {
    std::filesystem::copy_file(DSV3_BUILD_DIR "/registries/builtin.toml", folder / "builtin.toml");
    std::filesystem::remove(folder / "r.toml");
    const Plugins twice({{folder.path()}, {DSV3_BUILD_DIR "/registries"}});
    CHECK(twice.find_alias(Kind::optimizer, "muon"));
  }
}

TEST_CASE(
    "the error for an unknown name contains a suggestion, the known names and the searched paths") {
  Plugins plugins({{registry("good")}, {registry("twin")}});
  CHECK_THAT(
      error_of([&] { plugins.find(schedule("halvign")); }),
      Contains("unknown schedule plugin 'halvign'; did you mean 'halving'? known: halving, twin; "
               "looked in: " +
               registry("good").string() + ", " + registry("twin").string() +
               "\n  requested by nano.yaml:5:13"));
  CHECK_THAT(error_of([&] { plugins.find(schedule("cosine")); }), !Contains("did you mean"));
}

TEST_CASE("aliases expand to YAML") {
  TemporaryFolder folder;
  put(folder / "a.toml", head +
                             "[[alias]]\nkind = \"optimizer\"\nname = \"muon\"\nyaml = \"\"\"\n- "
                             "{plugin: x}\n\"\"\"\n");
  put(folder / "b.toml",
      head + "[[alias]]\nkind = \"optimizer\"\nname = \"muon\"\nyaml = \"later\"\n");
  Plugins plugins({{folder / "a.toml"}, {folder / "b.toml"}});
  REQUIRE(plugins.find_alias(Kind::optimizer, "muon"));
  CHECK(plugins.find_alias(Kind::optimizer, "muon")->yaml == "- {plugin: x}\n");
  CHECK(plugins.find_alias(Kind::schedule, "muon") == nullptr);
  dsv3::ComponentSpec spec;
  spec.kind = Kind::optimizer;
  spec.plugin = "muon";
  CHECK_THAT(error_of([&] { plugins.find(spec); }),
             Contains("is a short form that must be used alone: write `optimizer: muon`"));
  CHECK(plugins.names(Kind::optimizer) == std::vector<std::string>{"muon"});
}

TEST_CASE(
    "the plugin catalog provides the schemas, aliases and names that the experiment checker "
    "needs") {
  Plugins plugins({{registry("good")}, {registry("other_torch")}});
  const dsv3::Schema* schema = plugins.schema(Kind::schedule, "halving", "");
  REQUIRE(schema);
  CHECK(schema->find("steps"));
  CHECK(plugins.schema(Kind::schedule, "nothing", "") == nullptr);
  CHECK(plugins.schema(Kind::schedule, "twin", library("twin").string()) != nullptr);
  CHECK(plugins.alias(Kind::schedule, "halving").empty());
  CHECK(plugins.names(Kind::schedule) == std::vector<std::string>{"halving"});
  CHECK_THAT(plugins.searched(), Contains("good.toml"));
  CHECK_THAT(
      error_of([&] { plugins.schema(Kind::schedule, "halving", library("other_torch").string()); }),
      Contains("LibTorch:"));
}

TEST_CASE("the error for a missing library lists every path that was tried") {
  TemporaryFolder folder;
  std::filesystem::create_directories(folder / "registries");
  put(folder / "registries/r.toml", head + entry("lost", "liblost.so"));
  Plugins plugins({{folder.path()}});  // an installation prefix
  CHECK_THAT(error_of([&] { plugins.find(schedule("lost")); }),
             Contains((folder / "registries/liblost.so").string()) &&
                 Contains((folder / "lib/dsv3/plugins/liblost.so").string()) &&
                 Contains("listed in " + (folder / "registries/r.toml").string()));
  SECTION("in an installation, libraries are in lib/dsv3/plugins") {
    std::filesystem::create_directories(folder / "lib/dsv3/plugins");
    std::filesystem::copy_file(library("good"), folder / "lib/dsv3/plugins/libhalving.so");
    put(folder / "registries/r.toml", head + entry("halving", "libhalving.so"));
    CHECK(Plugins({{folder.path()}}).find(schedule("halving")).name == "halving");
  }
}

TEST_CASE(
    "if a registry lists a component that its library does not provide, the error names the "
    "registry") {
  TemporaryFolder folder;
  put(folder / "r.toml", head + entry("quarters", library("good").string()));
  Plugins plugins({{folder.path()}});
  CHECK_THAT(error_of([&] { plugins.find(schedule("quarters")); }),
             Contains("has no schedule 'quarters'; it provides schedule/halving; listed in " +
                      (folder / "r.toml").string()));
}

TEST_CASE("errors in a registry file are reported with file, line and column") {
  struct Case {
    std::string text, where, what;
  };
  const auto [text, where, what] = GENERATE(values<Case>({
      {"registry = 1\nset = \n", ":2:", ""},
      {"registry = 1\nlist = [1, 2.5,}\n", ":2:", ""},
      {"registry = 1\nset = \"a\"\nset = \"b\"\n", ":3:", ""},
      {"registry = 2\n", ":1:12", "`registry = 1`"},
      {"set = \"a\"\n", ":1:1", "`registry = 1`"},
      {"registry = 1\nplugins = 3\n", ":2:1", "unknown key 'plugins'"},
      {"registry = 1\n[plugin]\nkind = \"schedule\"\n", ":2:1", "[[plugin]]"},
      {"registry = 1\n[[plugin]]\nkind = \"schedules\"\n", ":3:8", "known kinds: attention"},
      {"registry = 1\n[[plugin]]\nkind = \"schedule\"\nlib = \"x\"\n", ":4:1",
       "known keys: kind, name"},
      {"registry = 1\n[[plugin]]\nkind = \"schedule\"\n", ":2:1", "this entry has no 'name'"},
      {"registry = 1\n[[alias]]\nkind = \"schedule\"\nname = 7\n", ":4:8", "must be a string"},
      {std::string(2000, '['), ":1:", ""},
  }));
  TemporaryFolder folder;
  put(folder / "r.toml", text);
  const std::string error = error_of([&] { Plugins({{folder / "r.toml"}}); });
  CHECK_THAT(error, Contains((folder / "r.toml").string() + where));
  CHECK_THAT(error, Contains(": error: "));
  CHECK_THAT(error, Contains(what));
}

TEST_CASE("paths that do not exist or contain no registry are errors") {
  TemporaryFolder folder;
  CHECK_THAT(error_of([&] { Plugins({{folder / "gone"}}); }), Contains("does not exist"));
  CHECK_THAT(error_of([&] { Plugins({{folder.path()}}); }), Contains("contains no registry"));
}
