// Conformance checks for tokenizers.
#include <dsv3/sdk/tokenizer.h>

#include "conformance/suite.h"

namespace dsv3::conformance {
namespace {

const std::vector<std::string> kTexts{
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

std::vector<int32_t> valid_ids(const Tokenizer& tokenizer, const std::string& text) {
  const std::vector<int32_t> ids = tokenizer.encode(text);
  for (const int32_t id : ids)
    require(id >= 0 && id < tokenizer.vocab_size(), "encode() returns id ", id,
            ", but vocab_size() is ", tokenizer.vocab_size());
  return ids;
}

}  // namespace

void tokenizer_checks(const AddCheck& check) {
  check("vocabulary", "has a vocabulary, an end-of-text id and a digest",
        [](const Subject& subject) {
          const auto checked = construct<Tokenizer>(subject);
          const int64_t size = checked->vocab_size();
          require(size > 0, "vocab_size() is ", size);
          require(checked->eos_id() >= -1 && checked->eos_id() < size, "eos_id() is ",
                  checked->eos_id(), ", vocab_size() is ", size);
          require(!checked->digest().empty(), "digest() is empty");
          require(checked->digest() == construct<Tokenizer>(subject)->digest(),
                  "digest() differs between two identical tokenizers");
          for (int64_t id = 0; id < size; id += 1 + size / 5000)
            checked->token_bytes(int32_t(id));  // must not throw for a valid id
        });
  check("round_trip", "decodes encoded text without loss", [](const Subject& subject) {
    const auto checked = construct<Tokenizer>(subject);
    for (const std::string& text : kTexts) {
      const std::vector<int32_t> ids = valid_ids(*checked, text);
      const std::string shown = text.substr(0, 40), decoded = checked->decode(ids);
      require(decoded == text, "decode(encode(\"", shown, "\")) is \"", decoded.substr(0, 60),
              "\"");
      std::string pieces;
      for (const int32_t id : ids) {
        pieces += checked->token_bytes(id);
        require(id != checked->eos_id(),
                "encode() adds the end-of-text id, but only its caller may add it");
      }
      require(pieces == text, "token_bytes() of encode(\"", shown, "\") differs from its input");
      require(text.empty() == ids.empty(), "\"", shown, "\" has ", ids.size(), " ids");
    }
  });
  check("bytes", "encodes and decodes arbitrary bytes without loss", [](const Subject& subject) {
    const auto checked = construct<Tokenizer>(subject);
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
  });
  check("threads", "can be called from several threads at once", [](const Subject& subject) {
    const auto checked = construct<Tokenizer>(subject);
    std::string all;
    for (const std::string& text : kTexts) all += text + " ";
    const std::vector<int32_t> expected = construct<Tokenizer>(subject)->encode(all);
    const auto encode_often = [&] {
      for (int round = 0; round < 9; ++round) checked->encode(all);
      return checked->encode(all);
    };
    for (const auto& ids : on_four_threads(encode_often))
      require(ids == expected,
              "encode() returns different ids when called from several threads at once");
  });
  check("memory", "frees its memory", [](const Subject& subject) {
    const auto checked = construct<Tokenizer>(subject);
    require_steady_memory([&] {
      for (const std::string& text : kTexts) checked->decode(checked->encode(text));
    });
  });
}

}  // namespace dsv3::conformance
