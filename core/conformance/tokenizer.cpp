// Promises of tokenizers.
#include <dsv3/sdk/tokenizer.h>

#include "conformance/suite.h"

namespace dsv3::conformance {
namespace {

const std::vector<std::string>& texts() {
  static const std::vector<std::string> all = {
      "",
      "Hello, world!",
      "  two  spaces\tand\ttabs\r\n\n\nlines ",
      "In the beginning God created the heaven and the earth.",
      "na\xc3\xafve caf\xc3\xa9, \xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e, "
      "\xd0\xbf\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82",
      "\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x94\xac and \xf0\x9f\x8f\xb3",
      "1234567890 3.14159 0x7f",
      "def f(x):\n    return x ** 2  # squared\n",
      std::string(3000, 'a'),
      std::string("a\0b", 3),
  };
  return all;
}

std::shared_ptr<Tokenizer> tokenizer(const Subject& subject) {
  return construct<Tokenizer>(subject, TokenizerContext{});
}

std::vector<int32_t> valid_ids(const Tokenizer& tokenizer, const std::string& text) {
  const std::vector<int32_t> ids = tokenizer.encode(text);
  for (const int32_t id : ids)
    require(id >= 0 && id < tokenizer.vocab_size(), "encode() gives id ", id, ", vocab_size() is ",
            tokenizer.vocab_size());
  return ids;
}

void check_vocabulary(const Subject& subject) {
  const auto checked = tokenizer(subject);
  const int64_t size = checked->vocab_size();
  require(size > 0, "vocab_size() is ", size);
  require(checked->eos_id() >= -1 && checked->eos_id() < size, "eos_id() is ", checked->eos_id(),
          ", vocab_size() is ", size);
  require(!checked->digest().empty(), "digest() is empty");
  require(checked->digest() == tokenizer(subject)->digest(),
          "digest() differs between two equal tokenizers");
  for (int64_t id = 0; id < size; id += 1 + size / 5000)
    checked->token_bytes(int32_t(id));  // must not throw for a valid id
}

void check_round_trip(const Subject& subject) {
  const auto checked = tokenizer(subject);
  for (const std::string& text : texts()) {
    const std::vector<int32_t> ids = valid_ids(*checked, text);
    const std::string shown = text.substr(0, 40), decoded = checked->decode(ids);
    require(decoded == text, "decode(encode(\"", shown, "\")) is \"", decoded.substr(0, 60), "\"");
    std::string pieces;
    for (const int32_t id : ids) {
      pieces += checked->token_bytes(id);
      require(id != checked->eos_id(), "encode() adds the end-of-text id");
    }
    require(pieces == text, "the bytes of the ids of \"", shown, "\" are not its bytes");
    require(text.empty() == ids.empty(), "\"", shown, "\" has ", ids.size(), " ids");
  }
}

void check_bytes(const Subject& subject) {
  const auto checked = tokenizer(subject);
  uint64_t state = 88172645463325252u;  // xorshift
  for (int round = 0; round < 200; ++round) {
    std::string bytes;
    for (int i = 0; i < round; ++i) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      bytes += static_cast<char>(state);
    }
    require(checked->decode(valid_ids(*checked, bytes)) == bytes,
            "decode(encode(x)) does not return random bytes unchanged");
  }
}

void check_threads(const Subject& subject) {
  const auto checked = tokenizer(subject);
  std::string all;
  for (const std::string& text : texts()) all += text + " ";
  const std::vector<int32_t> expected = tokenizer(subject)->encode(all);
  const auto encode_often = [&] {
    std::vector<int32_t> ids;
    for (int round = 0; round < 10; ++round) ids = checked->encode(all);
    return ids;
  };
  for (const auto& ids : on_four_threads(encode_often))
    require(ids == expected, "encode() gives other ids on several threads at once");
}

void check_memory(const Subject& subject) {
  const auto checked = tokenizer(subject);
  require_steady_memory([&] {
    for (const std::string& text : texts()) checked->decode(checked->encode(text));
  });
}

}  // namespace

std::vector<Check> tokenizer_checks() {
  return {{"vocabulary", "has a vocabulary, an end-of-text id and a digest", check_vocabulary},
          {"round_trip", "decodes every text to what it encoded", check_round_trip},
          {"bytes", "decodes arbitrary bytes to what it encoded", check_bytes},
          {"threads", "can be called by several threads at once", check_threads},
          {"memory", "frees its memory", check_memory}};
}

}  // namespace dsv3::conformance
