// Tests YAML parsing: source locations, quotes, limits.
#include <catch2/catch.hpp>

#include <dsv3/runtime/experiment.h>
#include <dsv3/sdk/error.h>

#include "config/layers.h"

using namespace dsv3::config;

namespace {

struct Parsed {
  Diagnostics diagnostics;
  std::optional<Node> node;
  explicit Parsed(const std::string& text) {
    node = parse(diagnostics, diagnostics.add_source("f.yaml", text, true));
  }
  std::string errors() const {
    try {
      diagnostics.throw_if_any();
    } catch (const dsv3::Error& error) {
      return error.what();
    }
    return "";
  }
};

std::string errors_of(const std::string& text) {
  return Parsed(text).errors();
}
bool has(const std::string& text, const std::string& part) {
  return text.find(part) != text.npos;
}

}  // namespace

TEST_CASE("values record their source location and whether they were quoted") {
  Parsed parsed("a: 1\nb:\n  c: [x, \"2\"]\n  d:\n");
  REQUIRE(parsed.errors() == "");
  const Node& root = *parsed.node;
  CHECK(root.find("a")->value.text == "1");
  CHECK_FALSE(root.find("a")->value.quoted);
  const Node& two = *find_path(root, "b.c.1");
  CHECK(two.text == "2");
  CHECK(two.quoted);
  CHECK(two.at.line == 3);
  CHECK(two.at.column == 10);
  CHECK(find_path(root, "b")->find("c")->at.column == 3);
  CHECK(find_path(root, "b.d")->is_null());
  CHECK(find_path(root, "b.d")->at.line == 4);
  CHECK(find_path(root, "b.c.2") == nullptr);
}

TEST_CASE("an alias expands to a copy of the anchored value") {
  Parsed parsed("a: &x {p: 1}\nb: *x\n");
  REQUIRE(parsed.errors() == "");
  CHECK(find_path(*parsed.node, "b.p")->text == "1");
}

TEST_CASE("exceeded limits and unsupported YAML features are reported with a source location") {
  CHECK(errors_of("a: 1\nb: 2\na: 3\n") ==
        "f.yaml:3:1: error: duplicate key 'a'\n"
        "  3 | a: 3\n"
        "    | ^\n"
        "  note: first given at f.yaml:1:1");
  CHECK(has(errors_of("x: &x {a: 1}\ny:\n  <<: *x\n"), "f.yaml:3:3: error: merge keys '<<'"));
  CHECK(errors_of("'<<': 1\n") == "");
  CHECK(has(errors_of("&x\n- *x\n"), "an alias must not contain itself"));
  CHECK(has(errors_of("a: !!int 3\n"), "f.yaml:1:4: error: tags such as"));
  CHECK(has(errors_of("a: 1\n---\nb: 2\n"), "more than one YAML document"));
  CHECK(has(errors_of("[a]: 1\n"), "a key must be a string"));
  CHECK(has(errors_of("a: [1, 2\nb: 3\n"), "f.yaml:1:4: error: not valid YAML"));
  CHECK(has(errors_of("a: *nowhere\n"), "f.yaml:1:4: error: not valid YAML"));

  CHECK(errors_of("a: " + std::string(63, '[') + std::string(63, ']')) == "");
  CHECK(has(errors_of("a: " + std::string(64, '[') + std::string(64, ']')), "deeper than 64"));
  CHECK(has(errors_of(std::string(100000, '[')), "error: "));

  std::string list = "a:";
  for (int i = 0; i < 9997; ++i) list += "\n- 1";
  CHECK(errors_of(list) == "");
  CHECK(has(errors_of(list + "\n- 1"), "more than 10000 keys and values"));
  CHECK(has(errors_of("a: " + std::string(1 << 20, 'x')), "larger than 1048576 bytes"));

  std::string aliases = "- &x 1";
  for (int i = 0; i < 100; ++i) aliases += "\n- *x";
  CHECK(errors_of(aliases) == "");
  CHECK(has(errors_of(aliases + "\n- *x"), "more than 100 aliases"));
}

TEST_CASE("YAML aliases that expand exponentially are rejected") {
  std::string wide = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n";
  for (int i = 1; i < 9; ++i) {
    const std::string before = "*a" + std::to_string(i - 1);
    wide += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int k = 0; k < 9; ++k) wide += before + ",";
    wide += before + "]\n";
  }
  CHECK(has(errors_of(wide), "aliases expand to more than 100000 values"));

  std::string deep = "a0: &a0 [1]\n";
  for (int i = 1; i < 90; ++i)
    deep += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [*a" + std::to_string(i - 1) +
            "]\n";
  CHECK(has(errors_of(deep), "deeper than 64"));
}

TEST_CASE("every string round-trips through YAML") {
  const std::string texts[] = {"",
                               "plain",
                               "a b",
                               "null",
                               "True",
                               "1e3",
                               "tab\tnew\nline",
                               "\"q\" \\ 'r'",
                               "# c",
                               "a #b",
                               "a: b",
                               "\x01\x7f",
                               "ü→",
                               "-",
                               "[x]",
                               "&a",
                               "no"};
  dsv3::Resolved resolved;
  for (const std::string& text : texts)
    resolved.values.push_back({"k" + std::to_string(resolved.values.size()), text, {}});
  Parsed parsed(resolved.yaml());
  REQUIRE(parsed.errors() == "");
  REQUIRE(parsed.node->entries.size() == std::size(texts));
  for (size_t i = 0; i < std::size(texts); ++i)
    CHECK(parsed.node->entries[i].value.text == texts[i]);
}

TEST_CASE("resolved values are written as nested maps and lists") {
  dsv3::Resolved resolved;
  const auto add = [&](const std::string& path, dsv3::OptionValue value, std::string written = "") {
    resolved.values.push_back({path, std::move(value), {"a.yaml", 1, 2}, std::move(written)});
  };
  add("dsv3", int64_t{1});
  add("model.vocab", std::monostate(), "auto");
  add("model.norm.eps", 1e-6);
  add("optimizer.0.plugin", std::string("adamw"));
  add("optimizer.0.betas", std::vector<double>{0.9, 0.95});
  add("optimizer.1.plugin", std::string("muon"));
  add("tracker", std::vector<std::string>());
  CHECK(resolved.yaml() ==
        "dsv3: 1\nmodel:\n  vocab: auto\n  norm:\n    eps: 1.0e-06\n"
        "optimizer:\n  - plugin: adamw\n    betas: [0.9, 0.95]\n  - plugin: muon\ntracker: []\n");
  CHECK(has(resolved.yaml(true), "  - plugin: muon  # a.yaml:1:2\n"));
  resolved.set("model.vocab", int64_t{300}, {"this machine"});
  CHECK(resolved.find("model.vocab")->yaml() == "300");
  CHECK(has(resolved.yaml(true), "  vocab: 300  # this machine\n"));
  CHECK(resolved.find("model.hidden") == nullptr);
}
