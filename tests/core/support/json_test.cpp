#include <cmath>
#include <limits>

#include <catch2/catch.hpp>

#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>
#include <dsv3/support/sha256.h>

#include "core/support/temporary_folder.h"

using dsv3::Json;
using dsv3::parse_json;

namespace {

std::string error_of(const std::string& text) {
  try {
    parse_json(text, "f.json");
  } catch (const dsv3::Error& error) {
    return error.what();
  }
  return "";
}

bool starts_with(const std::string& text, const std::string& start) {
  return text.rfind(start, 0) == 0;
}

std::string nested(int levels) {
  return std::string(levels, '[') + std::string(levels, ']');
}

}  // namespace

TEST_CASE("parse_json() and nlohmann::json parse valid JSON identically") {
  std::string text =
      R"({"a": [1, -2.5e3, "x\"\u00e9\n", true, null], "b": {"a": {}}, "": 18446744073709551615})";
  REQUIRE(parse_json(text, "f") == Json::parse(text));
  REQUIRE(parse_json(" 7 ", "f") == 7);
}

TEST_CASE("JSON errors contain the line and column") {
  REQUIRE(starts_with(error_of(""), "f.json:1:1: invalid JSON: "));
  REQUIRE(starts_with(error_of("{\"a\": 1,\n  \"b\": x}"), "f.json:2:8: invalid JSON: "));
  REQUIRE(starts_with(error_of("[1, 2"), "f.json:1:6: invalid JSON: "));
  REQUIRE(starts_with(error_of("{} {}"), "f.json:1:4: invalid JSON: "));
  REQUIRE(error_of(std::string("{}\0x", 4)) == "f.json:1:3: invalid JSON: zero byte");
  REQUIRE(starts_with(error_of("[1e999]"), "f.json:1:"));
  REQUIRE(error_of("[1e999]").find("1e999") != std::string::npos);
  REQUIRE(starts_with(error_of("\n\n\"\xff\""), "f.json:3:2: invalid JSON: "));
  REQUIRE(error_of("nul").find("json.exception") == std::string::npos);
}

TEST_CASE("a duplicate key in one object is an error with the location of the duplicate") {
  REQUIRE(error_of("{\"a\": 1,\n \"b\": {\"a\": 2},\n  \"a\": 3}") ==
          "f.json:3:3: invalid JSON: duplicate key \"a\"");
  // The same key spelled with different escapes, and a key with quotes and backslashes.
  REQUIRE(starts_with(error_of(R"({"a": 1, "\u0061": 2})"), "f.json:1:10: "));
  REQUIRE(starts_with(error_of(R"({"q\\\"": 1, "q\\\"": 2})"), "f.json:1:14: "));
  REQUIRE(error_of(R"({"a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1}, {"x": 2}]})").empty());
}

TEST_CASE("nesting is limited to 64 levels") {
  REQUIRE(error_of(nested(64)).empty());
  REQUIRE(error_of(nested(65)) == "f.json:1:65: invalid JSON: nested deeper than 64 levels");
  REQUIRE(starts_with(error_of(std::string(1000000, '[')), "f.json:1:65: "));
  std::string objects;
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  REQUIRE(error_of(objects).find("nested deeper") != std::string::npos);
}

TEST_CASE("errors in JSON files contain the file's path") {
  TemporaryFolder folder;
  put(folder / "a.json", "{\"x\": [}");
  REQUIRE_THROWS_WITH(dsv3::read_json(folder / "a.json"),
                      Catch::StartsWith((folder / "a.json").string() + ":1:8: "));
  REQUIRE_THROWS_WITH(dsv3::read_json(folder / "none.json"), Catch::Contains("No such file"));
}

TEST_CASE("numbers that JSON cannot represent are written as strings") {
  const double infinity = std::numeric_limits<double>::infinity();
  REQUIRE(dsv3::number_to_json(0.1) == 0.1);
  REQUIRE(dsv3::number_to_json(-infinity) == "-Infinity");
  for (double value : {0.0, 1e300, infinity, -infinity}) {
    REQUIRE(dsv3::number_from_json(dsv3::number_to_json(value)) == value);
  }
  REQUIRE(std::isnan(dsv3::number_from_json(dsv3::number_to_json(std::nan("")))));
  REQUIRE_THROWS_AS(dsv3::number_from_json("nan"), dsv3::Error);
  REQUIRE_THROWS_AS(dsv3::number_from_json(nullptr), dsv3::Error);
}

TEST_CASE("SHA-256 matches the FIPS 180-4 test vectors") {
  REQUIRE(dsv3::sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  REQUIRE(dsv3::sha256("abc") ==
          "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  std::string million(1000000, 'a');
  const char* digest = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
  REQUIRE(dsv3::sha256(million) == digest);
  dsv3::Sha256 pieces;
  for (size_t i = 0; i < million.size(); i += 777) pieces.update(million.substr(i, 777));
  REQUIRE(pieces.hex() == digest);
  TemporaryFolder folder;
  put(folder / "a", million);
  REQUIRE(dsv3::sha256_of_file(folder / "a") == digest);
}
