#include <cstring>
#include <limits>

#include <catch2/catch.hpp>

#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>
#include <dsv3/support/safetensors.h>
#include <dsv3/support/sha256.h>

#include "core/support/temporary_folder.h"

namespace st = dsv3::safetensors;

namespace {

/// Returns the bytes of a safetensors file, assembled as the format specifies.
std::string file_of(const std::string& header, const std::string& data) {
  uint64_t size = header.size();
  std::string prefix(8, '\0');
  std::memcpy(prefix.data(), &size, 8);  // the tests run on little-endian machines
  return prefix + header + data;
}

std::string tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return "\"" + name + "\": {\"dtype\": \"" + dtype + "\", \"shape\": " + shape +
         ", \"data_offsets\": " + offsets + "}";
}

struct Fixture {
  TemporaryFolder folder;

  /// Returns the error message from opening a file that contains `content`, or "" if it opens.
  std::string open(const std::string& content) {
    put(folder / "x.safetensors", content);
    try {
      st::File file(folder / "x.safetensors");
    } catch (const dsv3::Error& error) {
      REQUIRE(error.code() == dsv3::ExitCode::checkpoint);
      std::string text = error.what();
      REQUIRE(text.find((folder / "x.safetensors").string()) != std::string::npos);
      return text;
    }
    return "";
  }

  std::string open(const std::string& header, const std::string& data) {
    return open(file_of(header, data));
  }
};

bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

const std::string kEight(8, 'x');

}  // namespace

TEST_CASE("tensors round-trip through a file with the correct digest and alignment") {
  TemporaryFolder folder;
  std::vector<float> matrix{1, 2, 3, 4, 5, 6};
  int64_t scalar = -7;
  std::string state = "random state";
  std::map<std::string, st::View> tensors{
      {"b.matrix", {"F32", {2, 3}, matrix.data(), 24}},
      {"a.state", {"U8", {12}, state.data(), 12}},
      {"c.scalar", {"I64", {}, &scalar, 8}},
      {"d.empty", {"BF16", {0, 5}, nullptr, 0}},
  };
  auto written = st::write(folder / "f", tensors, {{"format", "pt"}});
  std::string bytes = get(folder / "f");
  REQUIRE(written.bytes == bytes.size());
  REQUIRE(written.sha256 == dsv3::sha256(bytes));
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  REQUIRE(header_size % 8 == 0);

  st::File file(folder / "f");
  REQUIRE(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  REQUIRE(file.tensors().size() == 4);
  for (const auto& [name, view] : tensors) {
    const st::View& read = file.tensors().at(name);
    REQUIRE(read.dtype == view.dtype);
    REQUIRE(read.shape == view.shape);
    REQUIRE(read.size == view.size);
    if (view.size > 0) REQUIRE(std::memcmp(read.bytes, view.bytes, view.size) == 0);
  }
}

TEST_CASE("write() rejects tensors that a reader would reject") {
  TemporaryFolder folder;
  float x = 0;
  auto write = [&](const std::string& name, const st::View& view) {
    st::write(folder / "f", {{name, view}});
  };
  REQUIRE_THROWS_WITH(write("t", {"F32", {2}, &x, 4}), Catch::Contains("'t'"));
  REQUIRE_THROWS_WITH(write("t", {"F33", {1}, &x, 4}), Catch::Contains("F33"));
  REQUIRE_THROWS_AS(write("t", {"F32", {-1}, &x, 4}), dsv3::Error);
  REQUIRE_THROWS_AS(write("__metadata__", {"F32", {1}, &x, 4}), dsv3::Error);
  REQUIRE_THROWS_WITH(write("\xff", {"F32", {1}, &x, 4}), Catch::Contains("UTF-8"));
  REQUIRE_FALSE(std::filesystem::exists(folder / "f"));
}

TEST_CASE_METHOD(Fixture, "unusual files that conform to the format can be read") {
  REQUIRE(open("{}", "").empty());
  REQUIRE(open("{\"__metadata__\": {\"a\": \"b\"}}", "").empty());
  REQUIRE(open("{" + tensor("t", "F32", "[2]", "[0, 8]") + "}   ", kEight).empty());
  REQUIRE(open("{" + tensor("t", "I64", "[]", "[0, 8]") + "}", kEight).empty());
  // The order in the header may differ from that in the data, and empty tensors may be anywhere.
  REQUIRE(open("{" + tensor("a", "F32", "[1]", "[4, 8]") + "," +
                   tensor("b", "F32", "[1]", "[0, 4]") + "," + tensor("c", "F32", "[0]", "[4, 4]") +
                   "}",
               kEight)
              .empty());
}

TEST_CASE_METHOD(Fixture, "an impossible header size is rejected") {
  REQUIRE(has(open(""), "only "));
  REQUIRE(has(open(std::string(7, '\0')), "only "));
  REQUIRE(has(open(std::string(8, '\0')), "'{'"));
  for (uint64_t size : {uint64_t{100'000'001}, UINT64_MAX, UINT64_MAX - 7, uint64_t{1} << 63}) {
    std::string file = file_of("{}", "");
    std::memcpy(file.data(), &size, 8);
    REQUIRE(has(open(file), "exceeds the limit"));
  }
  std::string file = file_of("{}", "");
  file[0] = 3;
  REQUIRE(has(open(file), "ends inside its header"));
}

TEST_CASE_METHOD(Fixture, "a header that is not valid JSON is rejected") {
  REQUIRE(has(open("{", ""), "invalid JSON"));
  REQUIRE(has(open("[]", ""), "'{'"));
  REQUIRE(has(open(" {}", ""), "'{'"));
  REQUIRE(has(open("{} x", ""), "invalid JSON"));
  REQUIRE(has(open("{\"\xff\": 1}", ""), "invalid JSON"));
  REQUIRE(has(open(std::string("{}\0\0", 4), ""), "invalid JSON"));
  std::string one = tensor("t", "F32", "[2]", "[0, 8]");
  REQUIRE(has(open("{" + one + "," + one + "}", kEight), "duplicate key"));
  REQUIRE(has(open("{\"__metadata__\": {\"a\": 1}}", ""), "__metadata__"));
  REQUIRE(has(open("{\"__metadata__\": []}", ""), "__metadata__"));
  REQUIRE(has(open("{\"t\": 1}", ""), "'t'"));
  REQUIRE(has(open("{\"t\": {\"dtype\": \"F32\", \"shape\": [2]}}", kEight), "data_offsets"));
  REQUIRE(has(open("{\"t\": {\"shape\": [2], \"data_offsets\": [0, 8]}}", kEight), "dtype"));
  REQUIRE(has(open("{\"t\": {\"dtype\": 4, \"shape\": [2], \"data_offsets\": [0, 8]}}", kEight),
              "dtype"));
}

TEST_CASE_METHOD(Fixture, "tensors whose size does not match their byte range are rejected") {
  auto one = [&](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    std::string text = open("{" + tensor("t", dtype, shape, offsets) + "}", kEight);
    if (!text.empty()) REQUIRE(has(text, "'t'"));
    return text;
  };
  REQUIRE(one("F32", "[2]", "[0, 8]").empty());
  REQUIRE(has(one("F99", "[2]", "[0, 8]"), "unknown dtype"));
  REQUIRE(has(one("", "[2]", "[0, 8]"), "unknown dtype"));
  REQUIRE(has(one("F32", "[3]", "[0, 8]"), "do not match"));
  REQUIRE(has(one("F32", "[2]", "[8, 0]"), "do not match"));
  REQUIRE_FALSE(one("F32", "[-2]", "[0, 8]").empty());
  REQUIRE_FALSE(one("F32", "[2.0]", "[0, 8]").empty());
  REQUIRE_FALSE(one("F32", "2", "[0, 8]").empty());
  REQUIRE_FALSE(one("F32", "[2]", "[0, 8, 8]").empty());
  REQUIRE_FALSE(one("F32", "[2]", "[-8, 0]").empty());
  REQUIRE_FALSE(one("F32", "[2]", "[0, 8.0]").empty());
  // The byte counts of these shapes overflow 64 bits and wrap around to 8 and 0.
  REQUIRE(has(one("F32", "[4611686018427387906]", "[0, 8]"), "too large"));
  REQUIRE(has(one("U8", "[4294967296, 4294967296]", "[0, 0]"), "too large"));
  REQUIRE_FALSE(one("U8", "[18446744073709551615]", "[0, 8]").empty());
}

TEST_CASE_METHOD(Fixture, "tensors must cover the data once and without gaps") {
  auto two = [&](const std::string& a, const std::string& b, size_t bytes) {
    return open("{" + tensor("a", "F32", "[1]", a) + "," + tensor("b", "F32", "[1]", b) + "}",
                std::string(bytes, 'x'));
  };
  REQUIRE(two("[0, 4]", "[4, 8]", 8).empty());
  REQUIRE(has(two("[0, 4]", "[0, 4]", 4), "starts at byte"));  // overlap
  REQUIRE(has(two("[0, 4]", "[3, 7]", 7), "starts at byte"));  // overlap
  REQUIRE(has(two("[0, 4]", "[5, 9]", 9), "starts at byte"));  // gap
  REQUIRE(has(two("[1, 5]", "[5, 9]", 9), "starts at byte"));  // gap at the start
  REQUIRE(has(two("[0, 4]", "[4, 8]", 9), "follow the header"));
  REQUIRE(has(two("[0, 4]", "[4, 8]", 7), "follow the header"));
}

TEST_CASE_METHOD(Fixture, "a file truncated at any byte is rejected") {
  std::string whole = file_of(
      "{" + tensor("a", "F32", "[1]", "[0, 4]") + "," + tensor("b", "F32", "[1]", "[4, 8]") + "}",
      kEight);
  REQUIRE(open(whole).empty());
  for (size_t size = 0; size < whole.size(); ++size)
    REQUIRE_FALSE(open(whole.substr(0, size)).empty());
}

TEST_CASE_METHOD(Fixture, "flipped bits in a header never cause reads outside the file") {
  std::string whole = file_of(
      "{" + tensor("a", "F32", "[1]", "[0, 4]") + "," + tensor("b", "F32", "[1]", "[4, 8]") + "}",
      kEight);
  int rejected = 0;
  for (size_t i = 0; i < whole.size() - 8; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = whole;
      flipped[i] ^= static_cast<char>(1 << bit);
      if (!open(flipped).empty()) {
        ++rejected;
        continue;
      }
      st::File file(folder / "x.safetensors");
      uint64_t total = 0;
      for (const auto& [name, view] : file.tensors()) {
        std::string copy(static_cast<const char*>(view.bytes), view.size);
        REQUIRE(copy == kEight.substr(0, view.size));
        total += view.size;
      }
      // The tensors still cover the data, so the flipped bit changed only a name, or a dtype to
      // another of the same size.
      REQUIRE(total == 8);
    }
  }
  REQUIRE(rejected > 1000);
}
