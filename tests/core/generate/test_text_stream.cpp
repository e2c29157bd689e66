#include <catch2/catch.hpp>

#include <dsv3/runtime/generate.h>
#include <dsv3/sdk/error.h>

namespace dsv3::test {
namespace {

/// A tokenizer with one id per byte.
class Bytes final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) text += token_bytes(id);
    return text;
  }
  std::string token_bytes(int32_t id) const override { return std::string(1, char(id)); }
  int64_t vocab_size() const override { return 256; }
  int32_t eos_id() const override { return -1; }
  std::string digest() const override { return ""; }
};

struct Streamed {
  std::vector<std::string> pieces;
  bool stopped;
};

Streamed stream(const std::string& text, const std::vector<std::string>& stops = {}) {
  const Bytes tokenizer;
  TextStream stream(tokenizer, stops);
  Streamed result{};
  for (const int32_t id : tokenizer.encode(text)) {
    const std::string piece = stream.add(id);
    if (!piece.empty()) result.pieces.push_back(piece);
  }
  const std::string last = stream.finish();
  if (!last.empty()) result.pieces.push_back(last);
  result.stopped = stream.stopped();
  return result;
}

using Pieces = std::vector<std::string>;

TEST_CASE("only complete characters are returned") {
  CHECK(stream("aé€😀.").pieces == Pieces{"a", "é", "€", "😀", "."});
  // A character cut off at the end, and bytes that are not UTF-8, become U+FFFD.
  CHECK(stream("a\xE2\x82").pieces == Pieces{"a", "\uFFFD"});
  CHECK(stream("\x82z\xC3x").pieces == Pieces{"\uFFFD", "z", "\uFFFDx"});
}

TEST_CASE("a stop string ends the text and is not returned") {
  CHECK(stream("one\n\ntwo", {"\n\n"}).pieces == Pieces{"o", "n", "e"});
  CHECK(stream("one\n\ntwo", {"\n\n"}).stopped);
  // Characters that may start a stop string are held back until it is clear whether they do.
  const Streamed other = stream("a\nb<e<en", {"\n\n", "<end>"});
  CHECK(other.pieces == Pieces{"a", "\nb", "<e", "<en"});
  CHECK_FALSE(other.stopped);
  CHECK(stream("xaab", {"ab"}).pieces == Pieces{"x", "a"});
  CHECK(stream("€€!", {"€!"}).pieces == Pieces{"€"});
  CHECK(stream("abc", {"bc", "b"}).pieces == Pieces{"a"});
  CHECK(stream("stop", {"stop"}).pieces.empty());
  const Bytes tokenizer;
  CHECK_THROWS_AS(TextStream(tokenizer, {""}), Error);
}

}  // namespace
}  // namespace dsv3::test
