// Tests that reading config.json ignores no field and reports all errors.
#include <catch2/catch.hpp>

#include <dsv3/sdk/config_reader.h>
#include <dsv3/sdk/error.h>

using dsv3::ConfigReader;
using dsv3::RopeParameters;
using Json = nlohmann::json;

namespace {

/// Calls `read` with a reader for `config`. Returns the error message that finish() throws, or ""
/// if it throws none.
template <class Read>
std::string mistakes(const Json& config, Read read) {
  ConfigReader reader(config);
  read(reader);
  try {
    reader.finish();
    return "";
  } catch (const dsv3::Error& error) {
    CHECK(error.code() == dsv3::ExitCode::usage);
    return error.what();
  }
}

RopeParameters rope_of(const Json& config) {
  ConfigReader reader(config);
  const RopeParameters rope = dsv3::read_rope(reader, 64);
  reader.finish();
  return rope;
}

std::string rope_mistakes(const Json& config) {
  return mistakes(config, [](ConfigReader& reader) { dsv3::read_rope(reader, 64); });
}

}  // namespace

TEST_CASE("fields are read by type, and defaults replace absent and null fields") {
  const Json config{{"a", 3}, {"b", 2.5}, {"c", true}, {"d", nullptr}, {"e", "word"}, {"f", 4}};
  ConfigReader reader(config);
  CHECK(reader.integer("a") == 3);
  CHECK(reader.number("b") == 2.5);
  CHECK(reader.number("f") == 4.0);
  CHECK(reader.boolean("c"));
  CHECK(reader.integer("d", 7) == 7);
  CHECK(reader.number("absent", 0.5) == 0.5);
  CHECK(reader.value("e") == "word");
  CHECK(reader.value("absent").is_null());
  CHECK_NOTHROW(reader.finish());
}

TEST_CASE("all errors are reported together") {
  const Json config{{"a", "3"}, {"b", 1}, {"c", 2.5}, {"surprise", 1}, {"ignored", 1}};
  const std::string text = mistakes(config, [](ConfigReader& reader) {
    reader.integer("a");
    reader.boolean("b");
    reader.integer("c", 1);
    reader.integer("missing");
    reader.ignore("ignored");
    reader.mistake("a and b do not match");
  });
  CHECK_THAT(text, Catch::Contains("\"a\" must be an integer, but is \"3\""));
  CHECK_THAT(text, Catch::Contains("\"b\" must be true or false, but is 1"));
  CHECK_THAT(text, Catch::Contains("\"c\" must be an integer, but is 2.5"));
  CHECK_THAT(text, Catch::Contains("\"missing\" is missing"));
  CHECK_THAT(text, Catch::Contains("a and b do not match"));
  CHECK_THAT(text, Catch::Contains("\"surprise\" (1): unknown field"));
  CHECK_THAT(text, !Catch::Contains("ignored"));
}

TEST_CASE("a field may be absent, but a value that dsv3 does not support is an error") {
  const auto silu = [](ConfigReader& reader) { reader.require("act", {"silu", "swish"}); };
  CHECK(mistakes({{"act", "silu"}}, silu).empty());
  CHECK(mistakes(Json::object(), silu).empty());
  CHECK(mistakes({{"act", nullptr}}, silu).empty());
  CHECK_THAT(mistakes({{"act", "gelu"}}, silu),
             Catch::Contains("\"act\" is \"gelu\", but dsv3 supports only \"silu\" or \"swish\""));
}

TEST_CASE("RoPE settings are read from `rope_scaling` or `rope_parameters` with the same result") {
  CHECK(rope_of(Json::object()).theta == 10000);
  CHECK(rope_of({{"rope_theta", 5000}}).theta == 5000);
  CHECK(rope_of({{"rope_parameters", {{"rope_theta", 5000}, {"rope_type", "default"}}}}).theta ==
        5000);
  const Json map{{"factor", 4}, {"mscale", 1}, {"original_max_position_embeddings", 16}};
  Json before = map, since = map;
  before["type"] = "yarn";
  since["rope_type"] = "yarn";
  since["rope_theta"] = 5000;
  for (const RopeParameters& rope : {rope_of({{"rope_theta", 5000}, {"rope_scaling", before}}),
                                     rope_of({{"rope_parameters", since}})}) {
    CHECK(rope.yarn);
    CHECK(rope.theta == 5000);
    CHECK(rope.factor == 4);
    CHECK(rope.beta_fast == 32);
    CHECK(rope.mscale == 1);
    CHECK(rope.mscale_all_dim == 0);
    CHECK(rope.original_length == 16);
  }
  CHECK(rope_of({{"rope_scaling", {{"type", "yarn"}, {"factor", 2}}}}).original_length == 64);
}

TEST_CASE("RoPE settings that dsv3 does not support are rejected") {
  CHECK_THAT(rope_mistakes({{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}}),
             Catch::Contains("\"linear\""));
  CHECK_THAT(rope_mistakes({{"rope_scaling", {{"type", "yarn"}}}}), Catch::Contains("\"factor\""));
  CHECK_THAT(rope_mistakes({{"rope_scaling", {{"type", "yarn"}, {"factor", 2}, {"alpha", 1}}}}),
             Catch::Contains("\"alpha\""));
  CHECK_THAT(rope_mistakes({{"rope_scaling", {{"type", "yarn"}, {"factor", "2"}}}}),
             Catch::Contains("must be a number"));
  CHECK_THAT(rope_mistakes({{"rope_scaling", Json::object()}, {"rope_parameters", Json::object()}}),
             Catch::Contains("both set"));
  CHECK_THAT(rope_mistakes({{"rope_theta", 5000}, {"rope_parameters", {{"rope_theta", 6000}}}}),
             Catch::Contains("twice"));
  CHECK_THAT(rope_mistakes({{"rope_scaling", "yarn"}}), Catch::Contains("must be a map"));
}

TEST_CASE("RoPE settings round-trip") {
  RopeParameters rope;
  rope.theta = 5000;
  Json config = Json::object();
  dsv3::write_rope(config, rope);
  CHECK(rope_of(config).theta == 5000);
  CHECK_FALSE(rope_of(config).yarn);
  rope.yarn = true;
  rope.factor = 8;
  rope.beta_fast = 16;
  rope.beta_slow = 2;
  rope.mscale = 0.5;
  rope.mscale_all_dim = 0.25;
  rope.original_length = 128;
  dsv3::write_rope(config, rope);
  const RopeParameters read = rope_of(config);
  CHECK(read.factor == 8);
  CHECK(read.beta_fast == 16);
  CHECK(read.beta_slow == 2);
  CHECK(read.mscale == 0.5);
  CHECK(read.mscale_all_dim == 0.25);
  CHECK(read.original_length == 128);
}
