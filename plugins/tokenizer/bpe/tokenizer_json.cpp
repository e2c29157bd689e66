#include "tokenizer_json.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <unordered_set>

#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>
#include <dsv3/support/sha256.h>

#include "utf8.h"

namespace dsv3::bpe {
namespace {

/// A JSON value and its path in the file, for error messages.
class Field {
 public:
  Field(const Json& value, std::string path) : value_(value), path_(std::move(path)) {}

  const Json& value() const { return value_; }
  const std::string& path() const { return path_; }
  bool is_null() const { return value_.is_null(); }

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(path_ + ": " + what, ExitCode::data);
  }

  /// Throws if the value is not an object or has keys that are not in `keys`.
  void known(std::initializer_list<const char*> keys) const {
    if (!value_.is_object()) fail("expected an object");
    for (const auto& item : value_.items())
      if (std::find(keys.begin(), keys.end(), item.key()) == keys.end())
        at(item.key()).fail("unknown key, which tokenizer/bpe does not support");
  }

  /// Null when absent.
  Field at(const std::string& key) const {
    static const Json null;
    const auto it = value_.find(key);
    return Field(it == value_.end() ? null : *it, path_ + (path_.ends_with(": ") ? "" : ".") + key);
  }

  Field at(size_t index) const {
    return Field(value_[index], path_ + "[" + std::to_string(index) + "]");
  }

  std::vector<Field> items() const {
    if (!value_.is_array()) fail("expected a list");
    std::vector<Field> all;
    for (size_t i = 0; i < value_.size(); ++i) all.push_back(at(i));
    return all;
  }

  std::string string() const {
    if (!value_.is_string()) fail("expected a string");
    return value_.get<std::string>();
  }

  bool boolean(std::optional<bool> absent = {}) const {
    if (is_null() && absent) return *absent;
    if (!value_.is_boolean()) fail("expected true or false");
    return value_.get<bool>();
  }

  int32_t id() const {
    if (!value_.is_number_unsigned() || value_.get<uint64_t>() > kLargestId)
      fail("expected a token id, an integer from 0 to " + std::to_string(kLargestId));
    return value_.get<int32_t>();
  }

  /// Throws unless the value is null, false, 0 or "".
  void off(const std::string& what) const {
    const bool is_off =
        is_null() || value_ == Json(false) || value_ == Json(0) || value_ == Json("");
    if (!is_off) fail(what + " is not supported");
  }

 private:
  // Limits the memory that a damaged file can make the plugin allocate.
  static constexpr uint64_t kLargestId = (1 << 24) - 1;
  const Json& value_;
  std::string path_;
};

void read_normalizer(const Field& field, Normalizer& normalizer) {
  if (field.is_null()) return;
  const std::string type = field.at("type").string();
  const std::pair<const char*, Form> forms[] = {
      {"NFC", Form::nfc}, {"NFD", Form::nfd}, {"NFKC", Form::nfkc}, {"NFKD", Form::nfkd}};
  for (const auto& [name, form] : forms)
    if (type == name) {
      field.known({"type"});
      normalizer.forms.push_back(form);
      return;
    }
  if (type != "Sequence")
    field.at("type").fail("normalizer '" + type +
                          "' is not supported; supported: NFC, NFD, NFKC, NFKD");
  field.known({"type", "normalizers"});
  for (const Field& item : field.at("normalizers").items()) read_normalizer(item, normalizer);
}

Split read_split(const Field& field) {
  field.known({"type", "pattern", "behavior", "invert"});
  const Field pattern = field.at("pattern");
  pattern.known({"Regex", "String"});
  const bool regex = !pattern.at("Regex").is_null();
  const Field text = pattern.at(regex ? "Regex" : "String");
  if (!regex && text.string().empty()) text.fail("the string to split at must not be empty");
  const std::string behavior = field.at("behavior").string();
  const std::pair<const char*, Behavior> behaviors[] = {
      {"Isolated", Behavior::isolated},
      {"Removed", Behavior::removed},
      {"MergedWithPrevious", Behavior::merged_with_previous},
      {"MergedWithNext", Behavior::merged_with_next},
      {"Contiguous", Behavior::contiguous}};
  for (const auto& [name, value] : behaviors)
    if (behavior == name)
      return {regex ? Pattern(to_pcre2(text.string(), text.path()), text.path())
                    : Pattern::literal(text.string(), text.path()),
              value, field.at("invert").boolean()};
  field.at("behavior").fail("unknown behavior '" + behavior + "'");
}

/// Reads one pre-tokenizer. Returns true if it is ByteLevel, which must be the last one.
bool read_pre_tokenizer(const Field& field, PreTokenizer& out) {
  const std::string type = field.at("type").string();
  if (type == "Split") {
    out.splits.push_back(read_split(field));
    return false;
  }
  if (type == "Digits") {
    field.known({"type", "individual_digits"});
    const bool single = field.at("individual_digits").boolean();
    out.splits.push_back({Pattern(single ? "\\p{N}" : "\\p{N}+", field.path())});
    return false;
  }
  if (type == "ByteLevel") {
    field.known({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    out.add_prefix_space = field.at("add_prefix_space").boolean();
    if (field.at("use_regex").boolean(true))
      out.byte_level = Split{Pattern(kByteLevelExpression, field.path())};
    return true;
  }
  if (type == "Sequence") {
    field.known({"type", "pretokenizers"});
    bool is_last = false;
    for (const Field& item : field.at("pretokenizers").items()) {
      if (is_last) item.fail("nothing may follow ByteLevel");
      is_last = read_pre_tokenizer(item, out);
    }
    return is_last;
  }
  field.at("type").fail("pre-tokenizer '" + type +
                        "' is not supported; supported: Split, Digits, ByteLevel, Sequence");
}

/// Accepts only post-processors that do not affect encode(): those that only change offsets, and
/// those that add special tokens only on request.
void check_post_processor(const Field& field) {
  if (field.is_null()) return;
  const std::string type = field.at("type").string();
  if (type == "Sequence") {
    for (const Field& item : field.at("processors").items()) check_post_processor(item);
  } else if (type != "ByteLevel" && type != "TemplateProcessing") {
    field.at("type").fail("post-processor '" + type +
                          "' is not supported; supported: ByteLevel, TemplateProcessing");
  }
}

void check_decoder(const Field& field) {
  if (field.is_null()) return;
  const std::string type = field.at("type").string();
  if (type != "ByteLevel")
    field.at("type").fail("decoder '" + type + "' is not supported; supported: ByteLevel");
}

void put(Definition& d, int32_t id, std::string bytes) {
  if (d.bytes.size() <= static_cast<size_t>(id)) d.bytes.resize(id + 1);
  d.bytes[id] = std::move(bytes);
}

constexpr size_t kMaxGaps = 1 << 16;  // maximum number of unused ids in a vocabulary

void read_vocab(const Field& field, Definition& d) {
  if (!field.value().is_object() || field.value().empty())
    field.fail("expected an object of tokens");
  std::vector<bool> seen;
  for (const auto& item : field.value().items()) {
    const int32_t id = Field(item.value(), field.path() + "[\"" + item.key() + "\"]").id();
    // Memory usage grows with the largest id, so reject a small file with a huge id.
    if (static_cast<size_t>(id) > kMaxGaps + 4 * field.value().size())
      field.fail("id " + std::to_string(id) + " is far above the number of tokens, " +
                 std::to_string(field.value().size()));
    if (seen.size() <= static_cast<size_t>(id)) seen.resize(id + 1);
    if (seen[id]) field.fail("id " + std::to_string(id) + " is used twice");
    seen[id] = true;
    std::string bytes;
    // Entries outside the byte alphabet are special tokens, which are also listed as added tokens.
    const bool reachable = bytes_of_token(item.key(), bytes);
    if (reachable) d.vocab.emplace(bytes, id);
    put(d, id, reachable ? bytes : item.key());
    d.by_text.emplace(item.key(), id);
  }
  std::array<int32_t, 256> byte_ids;
  for (int byte = 0; byte < 256; ++byte) {
    const auto it = d.vocab.find(std::string(1, static_cast<char>(byte)));
    if (it == d.vocab.end())
      field.fail("no token for byte " + std::to_string(byte) +
                 "; only byte-level vocabularies with all 256 bytes are supported");
    byte_ids[byte] = it->second;
  }
  d.merges.set_byte_ids(byte_ids);
}

std::pair<std::string, std::string> read_merge(const Field& field) {
  const Json& value = field.value();
  if (value.is_array() && value.size() == 2) return {field.at(0).string(), field.at(1).string()};
  if (!value.is_string()) field.fail("expected a merge, \"a b\" or [\"a\", \"b\"]");
  const std::string text = value.get<std::string>();
  const size_t space = text.find(' ');
  if (space == text.npos || text.find(' ', space + 1) != text.npos)
    field.fail("a merge must contain exactly one space: \"" + text + "\"");
  return {text.substr(0, space), text.substr(space + 1)};
}

/// Returns the merges as written in the file, for the digest.
Json read_merges(const Field& field, Definition& d) {
  if (!field.value().is_array()) field.fail("expected a list");
  Json pairs = Json::array();
  d.merges.reserve(field.value().size());
  const auto id_of = [&](const Field& merge, const std::string& token) {
    const auto it = d.by_text.find(token);
    if (it == d.by_text.end()) merge.fail("the token '" + token + "' is not in model.vocab");
    return it->second;
  };
  for (size_t i = 0; i < field.value().size(); ++i) {
    const Field merge = field.at(i);
    // Some files contain the version line of merges.txt.
    if (merge.value().is_string() && merge.string().starts_with("#version")) continue;
    const auto [left, right] = read_merge(merge);
    d.merges.set(id_of(merge, left), id_of(merge, right),
                 {static_cast<uint32_t>(pairs.size()), id_of(merge, left + right)});
    pairs.push_back({left, right});
  }
  return pairs;
}

/// Checks that the ids of added tokens are in the vocabulary or follow its last id without gaps.
void read_added(const Field& list, Definition& d, size_t vocab_size) {
  if (list.is_null()) return;
  int32_t next = static_cast<int32_t>(vocab_size);
  std::unordered_set<int32_t> seen;
  for (const Field& field : list.items()) {
    field.known({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken token{field.at("id").id(),
                     field.at("content").string(),
                     field.at("single_word").boolean(),
                     field.at("lstrip").boolean(),
                     field.at("rstrip").boolean(),
                     field.at("normalized").boolean(),
                     field.at("special").boolean()};
    if (token.content.empty()) field.at("content").fail("empty token");
    const auto [it, added] = d.by_text.try_emplace(token.content, next);
    if (added) ++next;
    if (it->second != token.id)
      field.at("id").fail("token '" + token.content + "' has id " + std::to_string(token.id) +
                          ", but the vocabulary and the tokens before it imply id " +
                          std::to_string(it->second));
    if (!seen.insert(token.id).second) field.fail("token '" + token.content + "' is listed twice");
    put(d, token.id, token.content);
    d.added.push_back(std::move(token));
  }
}

Definition read_definition(const Field& root) {
  root.known({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
              "post_processor", "decoder", "model"});
  root.at("truncation").off("truncation");
  root.at("padding").off("padding");
  Definition d;
  read_normalizer(root.at("normalizer"), d.normalizer);
  const Field pre_tokenizer = root.at("pre_tokenizer");
  if (pre_tokenizer.is_null() || !read_pre_tokenizer(pre_tokenizer, d.pre_tokenizer))
    pre_tokenizer.fail("must end in ByteLevel; only byte-level BPE is supported");
  check_post_processor(root.at("post_processor"));
  check_decoder(root.at("decoder"));

  const Field model = root.at("model");
  // unk_token, fuse_unk and byte_fallback only affect unknown characters, which do not exist if all
  // 256 bytes have a token.
  model.known({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
               "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (!model.at("type").is_null() && model.at("type").string() != "BPE")
    model.at("type").fail("model '" + model.at("type").string() +
                          "' is not supported; supported: BPE");
  model.at("dropout").off("dropout");
  model.at("continuing_subword_prefix").off("continuing_subword_prefix");
  model.at("end_of_word_suffix").off("end_of_word_suffix");
  d.ignore_merges = model.at("ignore_merges").boolean(false);
  read_vocab(model.at("vocab"), d);
  const Json merges = read_merges(model.at("merges"), d);
  read_added(root.at("added_tokens"), d, model.at("vocab").value().size());

  const Json all = Json::array({root.at("normalizer").value(), root.at("pre_tokenizer").value(),
                                root.at("added_tokens").value(), model.at("vocab").value(), merges,
                                d.ignore_merges});
  d.digest = sha256("dsv3 tokenizer/bpe 1\n" + all.dump());
  return d;
}

}  // namespace

Definition read_tokenizer_json(const std::string& file) {
  try {
    if (std::filesystem::is_directory(file))
      throw Error(file + " is a folder; pass the path of the tokenizer.json in the folder");
    return read_definition(Field(read_json(file), file + ": "));
  } catch (const Error& error) {
    throw Error(error.what(), ExitCode::data);
  }
}

}  // namespace dsv3::bpe
