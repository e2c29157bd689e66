// Fuzz target that reads a tokenizer.json with the bpe plugin, then encodes and decodes a string.
#include "bpe.h"
#include "input.h"

// Defines the key functions of the plugin's base classes, because libdsv3 defines them in a file
// that requires LibTorch.
dsv3::Tokenizer::~Tokenizer() = default;
dsv3::Pluggable::~Pluggable() = default;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string text =
      "In the beginning, 1234567 \xc3\xa9t\xc3\xa9s e\xcc\x81 \xe4\xb8\xad\xe6\x96\x87\r\n\t  "
      "don't I'LL \xff\xfe<|endoftext|> \xf0\x9f\x98\x80 aaaaaaaaaaaaaaaaaaaaaaaa";
  const auto file = fuzz::write("tokenizer.json", fuzz::view(data, size));
  fuzz::may_throw_error([&] {
    dsv3::plugins::BpeOptions options;
    options.file = file.string();
    const dsv3::plugins::Bpe bpe(options, {});
    const std::vector<int32_t> ids = bpe.encode(text);
    for (int32_t id : ids) fuzz::require(id >= 0 && id < bpe.vocab_size());
    bpe.decode(ids);
  });
  return 0;
}
