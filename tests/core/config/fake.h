// Test helpers: a catalog of fake components, and a temporary folder for experiment files.
#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <unistd.h>
#include <utility>
#include <variant>
#include <vector>

#include <dsv3/runtime/config.h>

namespace fake {

struct Mla {
  int64_t heads = 10, kv_lora_rank = 128, qk_rope_dim = 32;
  double init_scale = 1;
  static void describe(dsv3::OptionSchema<Mla>& s) {
    s.add("heads", &Mla::heads, "attention heads").min(1).shared("heads");
    s.add("kv_lora_rank", &Mla::kv_lora_rank, "rank").min(1);
    s.add("qk_rope_dim", &Mla::qk_rope_dim, "number of rotated features").min(2);
    s.add("init_scale", &Mla::init_scale, "scale");
    s.check([](const Mla& o) -> std::string {
      return o.qk_rope_dim % 2 ? "qk_rope_dim must be even" : "";
    });
  }
};
struct Mha {
  int64_t heads = 8, kv_heads = 0;
  bool qk_norm = false;
  static void describe(dsv3::OptionSchema<Mha>& s) {
    s.add("heads", &Mha::heads, "attention heads").min(1).shared("heads");
    s.add("kv_heads", &Mha::kv_heads, "number of key and value heads").min(1).word("heads", 0);
    s.add("qk_norm", &Mha::qk_norm, "norm");
  }
};
struct Rope {
  double theta = 10000;
  std::string layout = "interleaved";
  static void describe(dsv3::OptionSchema<Rope>& s) {
    s.add("theta", &Rope::theta, "base").min(1);
    s.add("layout", &Rope::layout, "pairs").choices({"interleaved", "halves"}).convention();
  }
};
struct Swiglu {
  int64_t hidden = 128;
  static void describe(dsv3::OptionSchema<Swiglu>& s) {
    s.add("hidden", &Swiglu::hidden, "width").min(1);
  }
};
struct Moe {
  int64_t routed = 8, top_k = 2;
  std::string centring = "none";
  std::vector<double> scales;
  static void describe(dsv3::OptionSchema<Moe>& s) {
    s.add("routed", &Moe::routed, "experts").min(1);
    s.add("top_k", &Moe::top_k, "experts a token").min(1);
    s.add("centring", &Moe::centring, "bias").choices({"none", "mean"}).convention();
    s.add("scales", &Moe::scales, "one an expert");
  }
};
struct Adamw {
  double lr = 1e-3;
  std::vector<double> betas{0.9, 0.95};
  static void describe(dsv3::OptionSchema<Adamw>& s) {
    s.add("lr", &Adamw::lr, "learning rate").min(0);
    s.add("betas", &Adamw::betas, "decay rates");
  }
};
struct Muon {
  double lr = 0.02;
  bool nesterov = true;
  static void describe(dsv3::OptionSchema<Muon>& s) {
    s.add("lr", &Muon::lr, "learning rate").min(0);
    s.add("nesterov", &Muon::nesterov, "look ahead").convention();
  }
};
struct Cosine {
  int64_t warmup = 0;
  static void describe(dsv3::OptionSchema<Cosine>& s) {
    s.add("warmup", &Cosine::warmup, "steps").min(0);
  }
};
struct Zero {
  int64_t stage = 1;
  static void describe(dsv3::OptionSchema<Zero>& s) {
    s.add("stage", &Zero::stage, "what is sharded").min(1).max(3);
  }
};
struct Text {
  std::string path;
  static void describe(dsv3::OptionSchema<Text>& s) {
    s.add("path", &Text::path, "file or folder").required();
  }
};
struct Bpe {
  std::string file;
  static void describe(dsv3::OptionSchema<Bpe>& s) { s.add("file", &Bpe::file, "tokenizer.json"); }
};
struct Server {
  std::string url, token;
  static void describe(dsv3::OptionSchema<Server>& s) {
    s.add("url", &Server::url, "address");
    s.add("token", &Server::token, "secret");
  }
};

class Catalog final : public dsv3::Catalog {
 public:
  Catalog() {
    using dsv3::Kind;
    add<Mla>(Kind::attention, "mla");
    add<Mha>(Kind::attention, "mha");
    add<Rope>(Kind::position, "rope");
    add<dsv3::NoOptions>(Kind::position, "none");
    add<Swiglu>(Kind::feed_forward, "swiglu");
    add<Moe>(Kind::feed_forward, "moe");
    add<Adamw>(Kind::optimizer, "adamw");
    add<Muon>(Kind::optimizer, "muon");
    add<Cosine>(Kind::schedule, "cosine");
    add<dsv3::NoOptions>(Kind::strategy, "single");
    add<Zero>(Kind::strategy, "zero");
    add<Text>(Kind::data, "text");
    add<Text>(Kind::data, "files");
    add<dsv3::NoOptions>(Kind::data, "synthetic");
    add<dsv3::NoOptions>(Kind::tokenizer, "bytes");
    add<Bpe>(Kind::tokenizer, "bpe");
    add<dsv3::NoOptions>(Kind::tracker, "csv");
    add<Server>(Kind::tracker, "mlflow");
    aliases[{Kind::optimizer, "muon"}] =
        "- {role: [embedding, head, norm, router, bias], plugin: adamw}\n"
        "- {role: matrix, plugin: muon}\n";
    aliases[{Kind::strategy, "deepspeed_stage_2"}] = "{plugin: zero, stage: 2}";
  }
  const dsv3::Schema* schema(dsv3::Kind kind, const std::string& name,
                             const std::string&) override {
    if (name == "broken") throw dsv3::Error("cannot load 'broken'", dsv3::ExitCode::plugin);
    const auto found = schemas.find({kind, name});
    return found == schemas.end() ? nullptr : &found->second;
  }
  std::string alias(dsv3::Kind kind, const std::string& name) const override {
    const auto found = aliases.find({kind, name});
    return found == aliases.end() ? "" : found->second;
  }
  std::vector<std::string> names(dsv3::Kind kind) const override {
    std::vector<std::string> names;
    for (const auto& [key, schema] : schemas)
      if (key.first == kind) names.push_back(key.second);
    return names;
  }
  std::string searched() const override { return "the table"; }
  std::string searched_library(const std::string&, const std::string&) const override {
    return "";
  }

  std::map<std::pair<dsv3::Kind, std::string>, dsv3::Schema> schemas;
  std::map<std::pair<dsv3::Kind, std::string>, std::string> aliases;

 private:
  template <class T>
  void add(dsv3::Kind kind, const std::string& name) {
    schemas[{kind, name}] = dsv3::schema_of<T>();
  }
};

/// A temporary folder that is removed at the end of the test.
class Folder {
 public:
  Folder() {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("dsv3-config-" + std::to_string(::getpid()) + "-" + std::to_string(count++));
    std::filesystem::create_directories(path_);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
    return path_ / name;
  }
  const std::filesystem::path& path() const { return path_; }
  /// Removes this folder's path from `text`.
  std::string shorten(std::string text) const {
    const std::string prefix = path_.string() + "/";
    for (size_t at; (at = text.find(prefix)) != text.npos;) text.erase(at, prefix.size());
    return text;
  }

 private:
  std::filesystem::path path_;
};

/// A complete experiment that uses every section.
inline const char* kExperiment = R"(dsv3: 1
name: tiny
model:
  hidden: 64
  layers: 4
  vocab: auto
  mtp: {depth: 1}
  attention: {plugin: mla, heads: 4, kv_lora_rank: 16}
  position: {plugin: rope, theta: 1e4}
  feed_forward:
    - {layers: 0, plugin: swiglu, hidden: 256}
    - {layers: 1-3, plugin: moe, routed: 16, scales: [1, 2.5]}
optimizer:
  - {role: [embedding, head, norm, router, bias], plugin: adamw, lr: 3.0e-4}
  - {role: matrix, plugin: muon, lr: 0.01}
schedule: {plugin: cosine, warmup: 10}
strategy: single
data: {plugin: text, path: some/where.txt, tokenizer: {plugin: bpe, file: t.json}}
train: {steps: 20, batch: 8, micro_batch: 4}
validation: {every: 10}
samples: {prompts: ["The \"Lord\"", 'a: b # c', "${name} $${x}"]}
checkpoint: {every: 10}
tracker: [csv, {plugin: mlflow, url: "http://x"}]
)";

inline dsv3::Experiment load(const std::filesystem::path& file,
                             const std::vector<std::string>& settings = {}) {
  Catalog catalog;
  dsv3::ExperimentRequest request;
  request.file = file;
  request.command_line = settings;
  return dsv3::load_experiment(request, catalog);
}

struct Show {
  std::string operator()(bool v) const { return v ? "true" : "false"; }
  std::string operator()(int64_t v) const { return std::to_string(v); }
  std::string operator()(double v) const { return std::to_string(v) + "f"; }
  std::string operator()(const std::string& v) const { return "'" + v + "'"; }
  std::string operator()(std::monostate) const { return "unset"; }
  template <class T>
  std::string operator()(const std::vector<T>& values) const {
    std::string text = "[";
    for (const T& value : values) text += (*this)(value) + ";";
    return text + "]";
  }
};

/// Formats values so that their types are visible: "heads=4 lr=0.500000f".
inline std::string show(const dsv3::OptionValues& values) {
  std::string text;
  for (const auto& [key, value] : values)
    text += (text.empty() ? "" : " ") + key + "=" + std::visit(Show{}, value);
  return text;
}

/// The error message for an experiment, or "" if it is valid.
inline std::string errors_of(const std::filesystem::path& file,
                             const std::vector<std::string>& settings = {}) {
  try {
    load(file, settings);
    return "";
  } catch (const dsv3::ConfigError& error) {
    return error.what();
  }
}

}  // namespace fake
