// Tests that the committed registry and READMEs match those that the build generates.
#include "fixtures.h"

using Catch::Matchers::Contains;

TEST_CASE("registries/builtin.toml is up to date (to update it, run ninja update_registry)") {
  CHECK(get(DSV3_SOURCE_DIR "/registries/builtin.toml") ==
        get(DSV3_BUILD_DIR "/registries/builtin.toml"));
}

TEST_CASE(
    "every built-in plugin loads, and its README contains its current option table (to update it, "
    "run ninja update_readmes)") {
  dsv3::Plugins plugins({{DSV3_BUILD_DIR "/registries/builtin.toml"}});
  for (const dsv3::PluginEntry& entry : plugins.entries()) {
    INFO(dsv3::kind_name(entry.kind) << "/" << entry.name);
    const dsv3::Registration* found = plugins.find_if_known(entry.kind, entry.name);
    REQUIRE(found);
    CHECK(found->summary == entry.summary);
    REQUIRE_FALSE(entry.docs.empty());
    CHECK_THAT(get(std::filesystem::path(DSV3_SOURCE_DIR) / entry.docs),
               Contains(dsv3::options_table(*found->schema, true)));
  }
}

TEST_CASE("aliases in the built-in registry refer to built-in plugins") {
  dsv3::Plugins plugins({{DSV3_SOURCE_DIR "/registries/builtin.toml"}});
  const dsv3::Alias* muon = plugins.find_alias(dsv3::Kind::optimizer, "muon");
  REQUIRE(muon);
  CHECK_THAT(muon->yaml, Contains("plugin: adamw}") && Contains("role: matrix, plugin: muon"));
}

TEST_CASE("the option table shows each option's type, default, allowed values and meaning") {
  struct Options {
    int64_t count = 3, size = 0;
    double rate = 3e-4, share = 0.5, theta = 10000, eps = 1e-6;
    bool on = true;
    std::string mode = "a", file;
    std::vector<int64_t> list{1, 2};
    static void describe(dsv3::OptionSchema<Options>& s) {
      s.add("count", &Options::count, "how many").min(1);
      s.add("size", &Options::size, "how big").min(0).word("auto", 0);
      s.add("rate", &Options::rate, "how fast").max(1);
      s.add("share", &Options::share, "how much").min(0).max(1);
      s.add("theta", &Options::theta, "how slow").min(1e-20);
      s.add("eps", &Options::eps, "how little");
      s.add("on", &Options::on, "whether");
      s.add("mode", &Options::mode, "which").choices({"a", "b"});
      s.add("file", &Options::file, "a | b").required();
      s.add("list", &Options::list, "which ones");
    }
  };
  const dsv3::Schema schema = dsv3::schema_of<Options>();
  CHECK(dsv3::options_table(schema, true) ==
        "| option | type | default | values | meaning |\n"
        "|---|---|---|---|---|\n"
        "| `count` | integer | `3` | at least 1 | how many |\n"
        "| `size` | integer | `auto` | at least 0 or auto | how big |\n"
        "| `rate` | number | `0.0003` | at most 1 | how fast |\n"
        "| `share` | number | `0.5` | 0 to 1 | how much |\n"
        "| `theta` | number | `10000` | at least 1e-20 | how slow |\n"
        "| `eps` | number | `1e-6` | | how little |\n"
        "| `on` | boolean | `true` | | whether |\n"
        "| `mode` | string | `a` | a, b | which |\n"
        "| `file` | string | (required) | | a \\| b |\n"
        "| `list` | list of integers | `[1, 2]` | | which ones |\n");
  const std::string text = dsv3::options_table(schema, false);
  CHECK_THAT(text, Contains("option  type              default     values"));
  CHECK_THAT(text, Contains("\nfile    string            (required)                      a | b\n"));
}

TEST_CASE("options have the range and the default of their member's type") {
  enum class Size { small, large };
  struct Base {
    float rate = 0.1f;
  };
  struct Options : Base {
    uint32_t count = 3;
    int8_t shift = -1;
    size_t width = 4;
    std::optional<float> limit;
    std::vector<int> list{1, 2};
    std::vector<float> shares{0.5f, 0.1f};
    Size size = Size::small;
    std::optional<Size> other;
    static void describe(dsv3::OptionSchema<Options>& s) {
      s.add("rate", &Options::rate, "member of a base class");
      s.add("count", &Options::count, "count");
      s.add("shift", &Options::shift, "shift");
      s.add("width", &Options::width, "width");
      s.add("limit", &Options::limit, "limit").word("none");
      s.add("list", &Options::list, "list");
      s.add("shares", &Options::shares, "shares");
      s.add("size", &Options::size, {{"small", Size::small}, {"large", Size::large}}, "size");
      s.add("other", &Options::other, {{"small", Size::small}, {"large", Size::large}}, "other");
      s.metric("mine/size", "bytes", "how big");
    }
  };
  const dsv3::Schema schema = dsv3::schema_of<Options>();
  CHECK(dsv3::options_table(schema, true) ==
        "| option | type | default | values | meaning |\n"
        "|---|---|---|---|---|\n"
        "| `rate` | number | `0.1` | | member of a base class |\n"
        "| `count` | integer | `3` | 0 to 4294967295 | count |\n"
        "| `shift` | integer | `-1` | -128 to 127 | shift |\n"
        "| `width` | integer | `4` | at least 0 | width |\n"
        "| `limit` | number | `none` | none | limit |\n"
        "| `list` | list of integers | `[1, 2]` | | list |\n"
        "| `shares` | list of numbers | `[0.5, 0.1]` | | shares |\n"
        "| `size` | string | `small` | small, large | size |\n"
        "| `other` | string | `unset` | small, large | other |\n"
        "\nMetrics:\n\n"
        "| metric | unit | meaning |\n"
        "|---|---|---|\n"
        "| `mine/size` | bytes | how big |\n");
  const auto options = dsv3::options_from<Options>(schema, {{"rate", 0.25},
                                                            {"count", int64_t{7}},
                                                            {"limit", 1.5},
                                                            {"list", std::vector<int64_t>{3}},
                                                            {"size", std::string("large")},
                                                            {"other", std::string("small")}});
  CHECK(options.rate == 0.25f);
  CHECK(options.count == 7);
  CHECK(options.shift == -1);
  CHECK(options.limit == 1.5f);
  CHECK(options.list == std::vector<int>{3});
  CHECK(options.size == Size::large);
  CHECK(options.other == Size::small);
}
