// Byte tokenizer: ids 0-255 are the bytes, 256 is the end of text.
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/tokenizer.h>
#include <dsv3/support/json.h>
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
      throw Error("token id " + std::to_string(id) +
                      " is outside the vocabulary of tokenizer/bytes (0 to 256)",
                  ExitCode::data);
    return id == kEos ? "<|endoftext|>" : std::string(1, static_cast<char>(id));
  }

  int64_t vocab_size() const override { return kEos + 1; }
  int32_t eos_id() const override { return kEos; }
  std::string digest() const override { return sha256("dsv3 tokenizer/bytes 1"); }
  std::map<std::string, std::string> files() const override;

 private:
  static constexpr int32_t kEos = 256;
};

namespace {

/// GPT-2's printable character for a byte: the byte itself if it is printable in Latin-1, else the
/// next unused character from U+0100 on.
std::string byte_character(int byte) {
  const auto is_printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  };
  int point = byte;
  if (!is_printable(byte)) {
    point = 256;
    for (int b = 0; b < byte; ++b) point += !is_printable(b);
  }
  if (point < 128) return std::string(1, char(point));
  return {char(0xC0 | point >> 6), char(0x80 | (point & 0x3F))};
}

}  // namespace

// Exports the tokenizer as a byte-level BPE without merges.
std::map<std::string, std::string> Bytes::files() const {
  Json vocab = Json::object();
  for (int byte = 0; byte < kEos; ++byte) vocab[byte_character(byte)] = byte;
  vocab[token_bytes(kEos)] = kEos;
  const Json byte_level{{"type", "ByteLevel"},
                        {"add_prefix_space", false},
                        {"trim_offsets", false},
                        {"use_regex", false}};
  const Json eos{
      {"id", kEos},      {"content", token_bytes(kEos)}, {"single_word", false}, {"lstrip", false},
      {"rstrip", false}, {"normalized", false},          {"special", true}};
  const Json tokenizer{{"version", "1.0"},
                       {"truncation", nullptr},
                       {"padding", nullptr},
                       {"added_tokens", {eos}},
                       {"normalizer", nullptr},
                       {"pre_tokenizer", byte_level},
                       {"post_processor", nullptr},
                       {"decoder", byte_level},
                       {"model",
                        {{"type", "BPE"},
                         {"dropout", nullptr},
                         {"unk_token", nullptr},
                         {"continuing_subword_prefix", nullptr},
                         {"end_of_word_suffix", nullptr},
                         {"fuse_unk", false},
                         {"byte_fallback", false},
                         {"vocab", vocab},
                         {"merges", Json::array()}}}};
  const Json config{{"tokenizer_class", "PreTrainedTokenizerFast"},
                    {"clean_up_tokenization_spaces", false},
                    {"eos_token", token_bytes(kEos)}};
  return {{"tokenizer.json", tokenizer.dump(2) + "\n"},
          {"tokenizer_config.json", config.dump(2) + "\n"}};
}

}  // namespace dsv3::plugins

DSV3_PLUGIN(registrar) {
  registrar.tokenizer<dsv3::plugins::Bytes>("bytes", "One id per byte, and an end-of-text id");
}
