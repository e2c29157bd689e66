// Tests how programs print errors: a source location is followed by the source line.
#include <catch2/catch.hpp>

#include <dsv3/runtime/compare.h>
#include <dsv3/runtime/logging.h>

#include "core/support/temporary_folder.h"

using dsv3::error_text;

TEST_CASE("an error with a source location shows the source line with a caret under the token") {
  TemporaryFolder folder;
  const std::string file = (folder / "a.yaml").string();
  put(file, "dsv3: 1\nschedule: {plugin: thrower, x: \xc3\xa9 }\n\tlast: 1");
  CHECK(error_text("schedule 'thrower' (" + file + ":2:20): no") ==
        "error: schedule 'thrower' (" + file +
            ":2:20): no\n"
            "  2 | schedule: {plugin: thrower, x: \xc3\xa9 }\n"
            "    |                    ^~~~~~~");
  CHECK(error_text(file + ":3:2: error: a\n  requested by " + file + ":1:1") ==
        file + ":3:2: error: a\n  3 |  last: 1\n    |  ^~~~\n  requested by " + file +
            ":1:1\n  1 | dsv3: 1\n    | ^~~~");
  // If there are two source locations, the caret marks the last one, because it belongs to the
  // cause.
  CHECK(error_text("a (" + file + ":2:1): b (" + file + ":1:7): c") ==
        "error: a (" + file + ":2:1): b (" + file + ":1:7): c\n  1 | dsv3: 1\n    |       ^");
  // The caret is in the correct column even after a two-byte character.
  CHECK(error_text(file + ":2:35: error: a").ends_with("| " + std::string(33, ' ') + "^"));
}

TEST_CASE("error_text() adds no source line to a message without a valid source location") {
  TemporaryFolder folder;
  const std::string file = (folder / "a.yaml").string();
  put(file, "dsv3: 1\n");
  for (const std::string& text :
       {std::string("no place"), std::string(""), std::string(":"), std::string("::"),
        std::string("a:1:1"), std::string(":1:1"), std::string("x:99999999999999999999:1: y"),
        file + ":1", file + ":0:1: y", file + ":1:0: y", file + ":7:1: y",
        folder.path().string() + ":1:1: y", std::string("hub: http://localhost:8080/a:1")})
    CHECK(error_text(text) == "error: " + text);
  // Messages with source excerpts, lists or notes have already been formatted by the experiment
  // checker and stay unchanged.
  for (const std::string& text :
       {file + ":1:1: error: y\n  1 | dsv3: 1\n    | ^~~~\n  note: first at " + file + ":1:1",
        std::string("a:1:1: error: y\n  b: 1 (") + file + ":1:1)",
        "command line: error: y (" + file + ":1:1)\n  train.steps=x\n              ^\n  note: z"})
    CHECK(error_text(text) == text);
}

TEST_CASE("differences() returns every key that differs between two resolved experiments") {
  const auto found = dsv3::differences(
      dsv3::read_resolved("dsv3: 1\nmodel:\n  hidden: 32\n  attention:\n    plugin: mla\n    "
                          "heads: 2\noptimizer:\n  - "
                          "plugin: adamw\n  - plugin: muon\nsamples:\n  prompts: [a, b]\n"),
      dsv3::read_resolved(
          "dsv3: 1\nmodel:\n  hidden: 64\n  attention:\n    plugin: mla\noptimizer:\n  - plugin: "
          "adamw\n  - plugin: sgd\n    lr: 1\nsamples:\n  prompts: [a, c]\n"));
  std::vector<std::string> lines;
  for (const auto& one : found) lines.push_back(one.key + " " + one.a + " " + one.b);
  CHECK(lines == std::vector<std::string>{"model.hidden 32 64", "model.attention.heads 2 ",
                                          "optimizer.1.plugin muon sgd",
                                          "samples.prompts [a, b] [a, c]", "optimizer.1.lr  1"});
}
