#include "config/layers.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <utility>

#include "config/parse.h"

namespace dsv3::config {
namespace {

namespace stdfs = std::filesystem;
constexpr size_t kMaxFiles = 100;

// Keys of the command line that are short for longer paths.
std::string written_out(const std::string& key) {
  for (const auto& [shorter, path] :
       {std::pair("attention", "model.attention"), std::pair("position", "model.position"),
        std::pair("feed_forward", "model.feed_forward"), std::pair("tokenizer", "data.tokenizer")})
    if (key == shorter) return path;
  return key;
}

stdfs::path true_path(const stdfs::path& file) {
  std::error_code error;
  const stdfs::path path = stdfs::weakly_canonical(file, error);
  return error ? file : path;
}

bool is_key_character(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.';
}

constexpr const char* kWhatAnExperimentIs =
    "an experiment is YAML: `dsv3: 1`, then `model:`, `optimizer:`, `data:`, `train:` ...";

// A value of a machine's config.yaml must not shadow what the experiment says; only these are
// defaults.
constexpr std::array kMachineKeys{"plugin_paths", "output", "tracker", "hub", "log"};

}  // namespace

Node read_yaml_file(Diagnostics& diagnostics, const stdfs::path& file, int layer) {
  std::error_code error;
  const bool regular = stdfs::is_regular_file(file, error);
  std::ifstream stream;
  if (regular) stream.open(file, std::ios::binary);
  if (!stream.is_open()) {
    const std::string why = regular                      ? "no permission"
                            : stdfs::exists(file, error) ? "not a file"
                                                         : "no such file";
    diagnostics.error({diagnostics.add_source(file.string(), "", false), 0, 0}, 0,
                      "cannot read '" + file.string() + "': " + why,
                      {"relative names start at the current folder"});
    return make_map({}, layer);
  }
  std::string text(kMaxBytes + 1, '\0');  // one more than the parser takes
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(stream.gcount()));
  return read_yaml_text(diagnostics, file, std::move(text), layer);
}

Node read_yaml_text(Diagnostics& diagnostics, const stdfs::path& file, std::string text,
                    int layer) {
  const bool binary = text.find('\0') != text.npos;
  const int source = diagnostics.add_source(file.string(), std::move(text), true);
  // Nobody need be told what an unreadable file lacks.
  const Node nothing = make_map({}, layer);
  if (binary) {
    diagnostics.error({source, 0, 0}, 1, "not YAML but a binary file", {kWhatAnExperimentIs});
    return nothing;
  }
  std::optional<Node> node = parse(diagnostics, source, layer);
  if (node && node->is_map()) return std::move(*node);
  if (node && node->is_null()) return make_map({source, 1, 1}, layer);
  if (node)
    diagnostics.error({source, 1, 1}, 1, "the file must be a map of keys and values",
                      {kWhatAnExperimentIs});
  return nothing;
}

Node LayerReader::read(const ExperimentRequest& request) {
  tree_ = make_map({}, 0);
  if (!request.machine_config.empty()) add_machine_config(request.machine_config);
  if (request.text.empty())
    add_file(request.file);
  else
    add_layer(read_yaml_text(diagnostics_, request.file, request.text, 0), request.file);
  diagnostics_.throw_if_any();  // what a broken text says is anyone's guess
  add_overrides(request.overrides, "command line");
  add_overrides(request.forced, request.forced_label);
  diagnostics_.throw_if_any();
  return std::move(tree_);
}

void LayerReader::add_machine_config(const stdfs::path& file) {
  Node layer = read_yaml_file(diagnostics_, file, ++layers_);
  check_version(layer, false);
  layer.erase("dsv3");
  for (const Entry& entry : layer.entries)
    if (std::find(kMachineKeys.begin(), kMachineKeys.end(), entry.key) == kMachineKeys.end())
      diagnostics_.error(
          entry, "unknown key '" + entry.key + "' in a file of machine defaults",
          {"known keys: plugin_paths, output, tracker, hub.endpoint, log.level; the rest "
           "belongs into experiments"});
  layer.erase("plugin_paths");  // read_machine_config's
  add(std::move(layer));
}

void LayerReader::add_file(const stdfs::path& file) {
  if (++files_ > kMaxFiles)
    throw ConfigError(file.string() + ": error: an experiment of more than " +
                          std::to_string(kMaxFiles) + " files",
                      1);
  add_layer(read_yaml_file(diagnostics_, file, 0), file);
}

void LayerReader::add_layer(Node&& layer, const stdfs::path& file) {
  const bool is_base = !open_.empty();
  open_.push_back(true_path(file));
  check_version(layer, !is_base);
  add_bases(layer, file);
  open_.pop_back();
  layer.erase("dsv3");
  layer.erase("extends");
  if (const Entry* paths = std::as_const(layer).find("plugin_paths")) {
    diagnostics_.error(*paths, "'plugin_paths' is a machine default",
                       {"put it into config.yaml, or use --plugin-path or DSV3_PLUGIN_PATH"});
    layer.erase("plugin_paths");
  }
  add(std::move(layer));
}

void LayerReader::add_bases(const Node& layer, const stdfs::path& file) {
  const Entry* extends = layer.find("extends");
  if (!extends) return;
  const Node& names = extends->value;
  if (names.is_scalar()) {
    add_base(names, file.parent_path());
  } else if (names.is_list()) {
    for (const Node& name : names.items) add_base(name, file.parent_path());
  } else {
    diagnostics_.error(*extends, "'extends' must be a file or a list of files");
  }
}

void LayerReader::add_base(const Node& name, const stdfs::path& folder) {
  if (!name.is_scalar()) {
    diagnostics_.error(name, "'extends' must be a file or a list of files");
    return;
  }
  const stdfs::path base = (folder / name.text).lexically_normal();
  std::error_code error;
  if (!stdfs::is_regular_file(base, error)) {
    diagnostics_.error(name, "cannot read '" + base.string() + "': no such file",
                       {"names in 'extends' are relative to the file that holds them"});
    return;
  }
  const auto cycle = std::find(open_.begin(), open_.end(), true_path(base));
  if (cycle != open_.end()) {
    std::string chain;
    for (auto file = cycle; file != open_.end(); ++file)
      chain += file->filename().string() + " -> ";
    chain += cycle->filename().string();
    diagnostics_.error(name, "'extends' goes in a circle", {chain});
    return;
  }
  add_file(base);
}

void LayerReader::check_version(const Node& layer, bool required) {
  const Entry* version = layer.find("dsv3");
  if (!version) {
    if (!required || layer.at.source < 0) return;
    if (layer.entries.empty())
      diagnostics_.error({layer.at.source, 0, 0}, 1, "the file is empty", {kWhatAnExperimentIs});
    else
      diagnostics_.error({layer.at.source, 1, 1}, 1, "the key 'dsv3' is missing",
                         {"write 'dsv3: 1', the version of the experiment format, at the top"});
  } else if (!version->value.is_scalar() || version->value.text != "1") {
    diagnostics_.error(version->value, "this dsv3 reads experiments of format 1",
                       {"write 'dsv3: 1', or use the dsv3 that this file was written for"});
  }
}

void LayerReader::add_overrides(const std::vector<std::string>& overrides,
                                const std::string& label) {
  if (overrides.empty()) return;
  const int layer = ++layers_;
  for (const std::string& text : overrides) add_override(text, label, layer);
}

void LayerReader::add_override(const std::string& text, const std::string& label, int layer) {
  const int source = diagnostics_.add_source(label, text, false);
  const size_t equals = text.find('=');
  const std::string key = text.substr(0, equals);
  if (equals == text.npos || key.empty() ||
      !std::all_of(key.begin(), key.end(), is_key_character) ||
      ("." + key + ".").find("..") != std::string::npos) {
    diagnostics_.error({source, 1, 1}, text.size(), "expected key=value",
                       {"for example train.steps=100 or attention=mha"});
    return;
  }
  std::optional<Node> value = parse(diagnostics_, source, layer, equals + 1);
  if (!value) return;
  if (value->is_null()) value->at = {source, 1, static_cast<int>(equals) + 1};

  // a.b.c=v is the tree {a: {b: {c: v}}}; keys of a short form all stand where it does.
  Node tree = make_map({source, 1, 1}, layer);
  Node* map = &tree;
  size_t begin = 0;
  std::vector<std::pair<std::string, Position>> keys;
  while (begin <= key.size()) {
    const size_t end = std::min(key.find('.', begin), key.size());
    std::string part = key.substr(begin, end - begin);
    if (begin == 0) part = written_out(part);
    const Position at{source, 1, static_cast<int>(begin) + 1};
    const size_t dot = part.find('.');
    if (dot != part.npos) keys.emplace_back(part.substr(0, dot), at);
    keys.emplace_back(dot == part.npos ? part : part.substr(dot + 1), at);
    begin = end + 1;
  }
  for (size_t i = 0; i + 1 < keys.size(); ++i)
    map = &map->add(keys[i].first, keys[i].second, make_map(keys[i].second, layer));
  map->add(keys.back().first, keys.back().second, std::move(*value));
  merger_.expand(tree);
  merger_.merge(tree_, std::move(tree));
}

void LayerReader::add(Node&& layer) {
  // Bases are numbered before the file that names them, so the number is known only now.
  const int number = ++layers_;
  const auto stamp = [number](auto& self, Node& node) -> void {
    node.layer = number;
    for (Node& item : node.items) self(self, item);
    for (Entry& entry : node.entries) self(self, entry.value);
  };
  stamp(stamp, layer);
  tree_.at = layer.at;  // the experiment itself comes last
  merger_.expand(layer);
  merger_.merge(tree_, std::move(layer));
}

}  // namespace dsv3::config
