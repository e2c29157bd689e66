// Promises of tokenizers.
#include <thread>

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
  return make<Tokenizer>(subject, TokenizerContext{});
}

void require_ids(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  for (const int32_t id : ids)
    require(id >= 0 && id < tokenizer.vocab_size(), "encode() gives id " + std::to_string(id) +
                                                        ", vocab_size() is " +
                                                        std::to_string(tokenizer.vocab_size()));
}

void check_vocabulary(const Subject& subject) {
  const auto made = tokenizer(subject);
  require(made->vocab_size() > 0, "vocab_size() is " + std::to_string(made->vocab_size()));
  require(made->eos_id() >= -1 && made->eos_id() < made->vocab_size(),
          "eos_id() is " + std::to_string(made->eos_id()) + ", vocab_size() is " +
              std::to_string(made->vocab_size()));
  require(!made->digest().empty(), "digest() is empty");
  require(made->digest() == tokenizer(subject)->digest(), "digest() differs from one to the next");
  for (int64_t id = 0; id < made->vocab_size(); id += 1 + made->vocab_size() / 5000)
    made->token_bytes(static_cast<int32_t>(id));  // throws for none of its ids
}

void check_round_trip(const Subject& subject) {
  const auto made = tokenizer(subject);
  for (const std::string& text : texts()) {
    const std::vector<int32_t> ids = made->encode(text);
    require_ids(*made, ids);
    const std::string shown = text.substr(0, 40);
    require(made->decode(ids) == text,
            "decode(encode(\"" + shown + "\")) is \"" + made->decode(ids).substr(0, 60) + "\"");
    std::string pieces;
    for (const int32_t id : ids) pieces += made->token_bytes(id);
    require(pieces == text, "the bytes of the ids of \"" + shown + "\" are not its bytes");
    require(text.empty() == ids.empty(),
            "\"" + shown + "\" has " + std::to_string(ids.size()) + " ids");
    for (const int32_t id : ids)
      require(id != made->eos_id() || made->eos_id() < 0, "encode() adds the end-of-text id");
  }
}

void check_bytes(const Subject& subject) {
  const auto made = tokenizer(subject);
  uint64_t state = 88172645463325252u;  // xorshift
  for (int round = 0; round < 200; ++round) {
    std::string bytes;
    for (int i = 0; i < round; ++i) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      bytes += static_cast<char>(state);
    }
    const std::vector<int32_t> ids = made->encode(bytes);
    require_ids(*made, ids);
    require(made->decode(ids) == bytes, "random bytes do not come back from decode(encode(x))");
  }
}

void check_threads(const Subject& subject) {
  const auto made = tokenizer(subject);
  std::string text;
  for (const std::string& each : texts()) text += each + " ";
  const std::vector<int32_t> wanted = tokenizer(subject)->encode(text);
  std::vector<std::vector<int32_t>> results(4);
  {
    std::vector<std::jthread> threads;
    for (auto& result : results)
      threads.emplace_back([&] {
        for (int round = 0; round < 10; ++round) result = made->encode(text);
      });
  }
  for (const auto& result : results)
    require(result == wanted, "encode() gives other ids on several threads at once");
}

void check_memory(const Subject& subject) {
  const auto made = tokenizer(subject);
  require_steady_memory([&] {
    for (const std::string& text : texts()) made->decode(made->encode(text));
  });
}

}  // namespace

std::vector<Check> tokenizer_checks() {
  return {
      {"vocabulary", "knows its vocabulary, end-of-text id and digest", check_vocabulary},
      {"round_trip", "gives every text back", check_round_trip},
      {"bytes", "gives arbitrary bytes back", check_bytes},
      {"threads", "may be called by several threads at once", check_threads},
      {"memory", "gives its memory back", check_memory},
  };
}

}  // namespace dsv3::conformance
