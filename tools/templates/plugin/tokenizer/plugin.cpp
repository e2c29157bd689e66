// tokenizer/@NAME@: ids 0-255 are single bytes, followed by byte pairs and the end-of-text id.
#include <algorithm>
#include <set>

#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/tokenizer.h>
#include <dsv3/support/sha256.h>

namespace {

struct Options {
  std::vector<std::string> pairs = {"e ", "th", "t ", "s ", "d ", "in", "er", "an"};
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("pairs", &Options::pairs, "byte pairs that are tokens, such as `th`");
    s.check([](const Options& o) -> std::string {
      for (const std::string& pair : o.pairs)
        if (pair.size() != 2) return "each pair must be two bytes long, but '" + pair + "' is not";
      if (std::set<std::string>(o.pairs.begin(), o.pairs.end()).size() != o.pairs.size())
        return "pairs contains a duplicate";
      return "";
    });
  }
};

class Pairs final : public dsv3::Tokenizer {
 public:
  using Options = ::Options;
  Pairs(const Options& options, const dsv3::TokenizerContext&) : pairs_(options.pairs) {}

  // Encodes from left to right: the next byte pair if it has an id, else a single byte. Accepts any
  // bytes.
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size();) {
      const auto found = std::find(pairs_.begin(), pairs_.end(), text.substr(i, 2));
      if (found != pairs_.end()) {
        ids.push_back(256 + static_cast<int32_t>(found - pairs_.begin()));
        i += 2;
      } else {
        ids.push_back(static_cast<unsigned char>(text[i++]));
      }
    }
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (const int32_t id : ids) text += token_bytes(id);
    return text;
  }

  std::string token_bytes(int32_t id) const override {
    if (id < 0 || id > eos_id())
      throw dsv3::Error("token id " + std::to_string(id) +
                            " is outside the vocabulary of tokenizer/@NAME@ (0 to " +
                            std::to_string(eos_id()) + ")",
                        dsv3::ExitCode::data);
    if (id == eos_id()) return "<|endoftext|>";
    return id < 256 ? std::string(1, static_cast<char>(id)) : pairs_[id - 256];
  }

  int64_t vocab_size() const override { return eos_id() + 1; }
  int32_t eos_id() const override { return 256 + static_cast<int32_t>(pairs_.size()); }

  // Must change with everything that determines the ids: the algorithm's version and the options.
  std::string digest() const override {
    std::string all = "tokenizer/@NAME@ 1:";
    for (const std::string& pair : pairs_) all += pair;
    return dsv3::sha256(all);
  }

 private:
  std::vector<std::string> pairs_;
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.tokenizer<Pairs>("@NAME@", "@NAME@, based on the tokenizer template");
}
