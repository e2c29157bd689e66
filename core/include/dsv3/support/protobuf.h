// Encoder for Protocol Buffers, for plugins that write a few fixed messages.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace dsv3::protobuf {

/// A message in the wire format. Fields are written in the order of the calls, also those with
/// default values: omit these, except in a oneof. Repeated fields and map entries are repeated
/// calls. `field` is the field's number.
class Message {
 public:
  /// Fields of type int32, int64, uint32, uint64, bool and enum.
  Message& integer(int field, int64_t value);
  Message& fixed64(int field, uint64_t value);
  Message& float32(int field, float value);   ///< type float
  Message& float64(int field, double value);  ///< type double
  Message& bytes(int field, std::string_view value);
  /// Type string. Replaces invalid UTF-8 by U+FFFD, because readers reject the whole message for
  /// it.
  Message& string(int field, std::string_view value);
  Message& message(int field, const Message& value);

  const std::string& encoded() const { return encoded_; }

 private:
  void varint(uint64_t value);
  void key(int field, int wire_type);

  std::string encoded_;
};

}  // namespace dsv3::protobuf
