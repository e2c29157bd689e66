// Expected bytes are examples of the encoding's documentation (protobuf.dev), or were written by
// Python's protobuf.
#include <limits>

#include <catch2/catch.hpp>

#include <dsv3/support/protobuf.h>

using dsv3::protobuf::Message;

namespace {

std::string hex(const Message& message) {
  std::string text;
  for (const unsigned char byte : message.encoded()) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

}  // namespace

TEST_CASE("fields are encoded as the documentation of Protocol Buffers shows") {
  CHECK(hex(Message().integer(1, 150)) == "089601");
  CHECK(hex(Message().string(2, "testing")) == "120774657374696e67");
  CHECK(hex(Message().message(3, Message().integer(1, 150))) == "1a03089601");
  CHECK(hex(Message().integer(1, -2)) == "08feffffffffffffffff01");
}

TEST_CASE("fields are encoded as Python's protobuf encodes them") {
  // google.protobuf: Int64Value, DoubleValue, FloatValue; a field of type fixed64 with number 16.
  CHECK(hex(Message().integer(1, std::numeric_limits<int64_t>::min())) == "0880808080808080808001");
  CHECK(hex(Message().integer(1, std::numeric_limits<int64_t>::max())) == "08ffffffffffffffff7f");
  CHECK(hex(Message().float64(1, 0.1)) == "099a9999999999b93f");
  CHECK(hex(Message().float32(1, -HUGE_VALF)) == "0d000080ff");
  CHECK(hex(Message().fixed64(16, 0x0102030405060708)) == "81010807060504030201");
  CHECK(hex(Message().bytes(1, std::string(200, 'a'))).substr(0, 8) == "0ac80161");
  CHECK(hex(Message()) == "");
}

TEST_CASE("strings are always valid UTF-8, and keep NUL") {
  CHECK(Message().string(1, "\xff").encoded() == "\x0a\x03\xef\xbf\xbd");
  CHECK(hex(Message().string(1, "caf\xc3\xa9")) == "0a05636166c3a9");
  CHECK(hex(Message().string(1, "a\xe2\x82z")) ==
        "0a0861efbfbdefbfbd7a");  // an incomplete character
  CHECK(hex(Message().string(1, std::string_view("a\0b", 3))) == "0a03610062");
  CHECK(hex(Message().bytes(1, "\xff")) == "0a01ff");
}
