#include <bit>

#include <dsv3/support/protobuf.h>
#include <dsv3/support/utf8.h>

namespace dsv3::protobuf {
namespace {

constexpr int kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5;  // wire types

template <class T>
void append_little_endian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof value; ++i) out += char(value >> 8 * i & 0xff);
}

std::string valid_utf8(std::string_view text) {
  std::string valid;
  while (!text.empty()) {
    const size_t size = valid_prefix(text);
    valid += text.substr(0, size);
    text.remove_prefix(size);
    if (text.empty()) break;
    valid += "\xef\xbf\xbd";
    text.remove_prefix(1);
  }
  return valid;
}

}  // namespace

void Message::varint(uint64_t value) {
  for (; value >= 0x80; value >>= 7) encoded_ += char(0x80 | (value & 0x7f));
  encoded_ += char(value);
}

void Message::key(int field, int wire_type) {
  varint(uint64_t(field) << 3 | uint64_t(wire_type));
}

Message& Message::integer(int field, int64_t value) {
  key(field, kVarint);
  varint(uint64_t(value));
  return *this;
}

Message& Message::fixed64(int field, uint64_t value) {
  key(field, kFixed64);
  append_little_endian(encoded_, value);
  return *this;
}

Message& Message::float32(int field, float value) {
  key(field, kFixed32);
  append_little_endian(encoded_, std::bit_cast<uint32_t>(value));
  return *this;
}

Message& Message::float64(int field, double value) {
  return fixed64(field, std::bit_cast<uint64_t>(value));
}

Message& Message::bytes(int field, std::string_view value) {
  key(field, kLengthDelimited);
  varint(value.size());
  encoded_ += value;
  return *this;
}

Message& Message::string(int field, std::string_view value) {
  return bytes(field, valid_utf8(value));
}

Message& Message::message(int field, const Message& value) {
  return bytes(field, value.encoded());
}

}  // namespace dsv3::protobuf
