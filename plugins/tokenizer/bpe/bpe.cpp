#include "bpe.h"

#include <dsv3/sdk/plugin.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

#include "utf8.h"

namespace dsv3::plugins {
namespace {

constexpr size_t kCachedWords = 1 << 16;   // the cache is cleared when full
constexpr size_t kLongestCachedWord = 64;  // bytes

struct ViewHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};

}  // namespace

/// Buffers and a word cache for one encoding thread.
struct Bpe::Scratch {
  bpe::SplitScratch split;
  bpe::Merges::Scratch merge;
  std::string normalized;
  std::unordered_map<std::string, std::pair<uint32_t, uint32_t>, ViewHash, std::equal_to<>> words;
  std::vector<int32_t> word_ids;  // ids of all cached words; `words` maps to (first, count)
};

/// Borrows an idle Scratch and returns it in the destructor.
class Bpe::Borrowed {
 public:
  explicit Borrowed(const Bpe& owner) : owner_(owner) {
    std::lock_guard lock(owner_.mutex_);
    if (owner_.idle_.empty()) return;
    scratch_ = std::move(owner_.idle_.back());
    owner_.idle_.pop_back();
  }
  ~Borrowed() {
    std::lock_guard lock(owner_.mutex_);
    owner_.idle_.push_back(std::move(scratch_));
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  Scratch& get() {
    if (!scratch_) scratch_ = std::make_unique<Scratch>();
    return *scratch_;
  }

 private:
  const Bpe& owner_;
  std::unique_ptr<Scratch> scratch_;
};

Bpe::Bpe(const Options& options, const TokenizerContext&)
    : file_(options.file),
      definition_(bpe::read_tokenizer_json(options.file)),
      eos_(find_eos(options)) {
  for (const bpe::AddedToken& token : definition_.added) {
    if (!token.normalized) {
      raw_tokens_.add(token, token.content);
      continue;
    }
    std::string buffer;
    normalized_tokens_.add(token, std::string(definition_.normalizer(token.content, buffer)));
  }
}

Bpe::~Bpe() = default;

int32_t Bpe::find_eos(const Options& options) const {
  const auto& known = definition_.by_text;
  if (!options.eos.empty()) {
    const auto it = known.find(options.eos);
    if (it != known.end()) return it->second;
    std::string special;
    for (const bpe::AddedToken& token : definition_.added)
      if (token.special && special.size() < 200)
        special += (special.empty() ? "" : ", ") + token.content;
    throw Error("option eos: no token '" + options.eos + "' in " + options.file +
                    "; its special tokens: " + (special.empty() ? "none" : special),
                ExitCode::data);
  }
  for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>"})
    if (const auto it = known.find(name); it != known.end()) return it->second;
  return -1;
}

std::vector<int32_t> Bpe::encode(std::string_view text) const {
  Borrowed borrowed(*this);
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  while (!text.empty()) {
    const size_t valid = valid_prefix(text);
    if (valid > 0) encode_valid(text.substr(0, valid), borrowed.get(), ids);
    text.remove_prefix(valid);
    size_t invalid = 0;
    while (invalid < text.size() && character_size(text.substr(invalid)) == 0) ++invalid;
    if (invalid > 0) encode_word(text.substr(0, invalid), borrowed.get(), ids);
    text.remove_prefix(invalid);
  }
  return ids;
}

void Bpe::encode_valid(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
  raw_tokens_.split(text, scratch.split.match, [&](std::string_view outer, int32_t outer_id) {
    if (outer_id >= 0) {
      ids.push_back(outer_id);
      return;
    }
    const std::string_view normalized = definition_.normalizer(outer, scratch.normalized);
    normalized_tokens_.split(normalized, scratch.split.match,
                             [&](std::string_view inner, int32_t id) {
                               if (id >= 0)
                                 ids.push_back(id);
                               else
                                 encode_ordinary(inner, scratch, ids);
                             });
  });
}

void Bpe::encode_ordinary(std::string_view text, Scratch& scratch,
                          std::vector<int32_t>& ids) const {
  definition_.pre_tokenizer(text, scratch.split);
  for (std::string_view word : scratch.split.words) encode_word(word, scratch, ids);
}

void Bpe::encode_word(std::string_view word, Scratch& scratch, std::vector<int32_t>& ids) const {
  if (definition_.ignore_merges)
    if (const auto it = definition_.vocab.find(std::string(word)); it != definition_.vocab.end())
      return ids.push_back(it->second);
  if (word.size() > kLongestCachedWord) return definition_.merges.apply(word, scratch.merge, ids);
  auto it = scratch.words.find(word);
  if (it == scratch.words.end()) {
    if (scratch.words.size() >= kCachedWords) {
      scratch.words.clear();
      scratch.word_ids.clear();
    }
    const uint32_t first = scratch.word_ids.size();
    definition_.merges.apply(word, scratch.merge, scratch.word_ids);
    const uint32_t count = scratch.word_ids.size() - first;
    it = scratch.words.emplace(std::string(word), std::pair{first, count}).first;
  }
  const auto first = scratch.word_ids.begin() + it->second.first;
  ids.insert(ids.end(), first, first + it->second.second);
}

std::string Bpe::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size())
    throw Error("token id " + std::to_string(id) + " is outside the vocabulary (0 to " +
                    std::to_string(vocab_size() - 1) + ")",
                ExitCode::data);
  return definition_.bytes[id];
}

std::map<std::string, std::string> Bpe::files() const {
  const std::string text = fs::read(file_);
  if (bpe::read_tokenizer_json(file_).digest != definition_.digest)
    throw Error(file_ + " has changed since it was loaded", ExitCode::data);
  Json config{{"tokenizer_class", "PreTrainedTokenizerFast"},
              {"clean_up_tokenization_spaces", false}};
  if (eos_ >= 0) config["eos_token"] = token_bytes(eos_);
  return {{"tokenizer.json", text}, {"tokenizer_config.json", config.dump(2) + "\n"}};
}

std::string Bpe::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (int32_t id : ids) text += token_bytes(id);
  return text;
}

}  // namespace dsv3::plugins

DSV3_PLUGIN(registrar) {
  registrar.tokenizer<dsv3::plugins::Bpe>("bpe",
                                          "Byte-level BPE from a Hugging Face tokenizer.json");
}
