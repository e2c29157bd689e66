// Tokenizer of bytes: ids 0-255 are the bytes, 256 ends a text.
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/tokenizer.h>
#include <dsv3/support/sha256.h>

namespace dsv3::plugins {

class Bytes final : public Tokenizer {
 public:
  using Options = NoOptions;
  Bytes(const Options&, const TokenizerContext&) {}

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids(text.size());
    for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (int32_t id : ids) text += token_bytes(id);
    return text;
  }

  std::string token_bytes(int32_t id) const override {
    if (id < 0 || id > kEos)
      throw Error("token id " + std::to_string(id) + " is not one of tokenizer/bytes (0 to 256)",
                  ExitCode::data);
    return id == kEos ? "<|endoftext|>" : std::string(1, static_cast<char>(id));
  }

  int64_t vocab_size() const override { return kEos + 1; }
  int32_t eos_id() const override { return kEos; }
  std::string digest() const override { return sha256("dsv3 tokenizer/bytes 1"); }

 private:
  static constexpr int32_t kEos = 256;
};

}  // namespace dsv3::plugins

DSV3_PLUGIN(registrar) {
  registrar.tokenizer<dsv3::plugins::Bytes>("bytes", "One id a byte, and end of text");
}
