#include "config/layers.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <iterator>
#include <utility>

#include <dsv3/runtime/printable.h>

#include "config/values.h"

namespace dsv3::config {
namespace {

namespace stdfs = std::filesystem;
constexpr size_t kMaxFiles = 100;

stdfs::path true_path(const stdfs::path& file) {
  std::error_code error;
  const stdfs::path path = stdfs::weakly_canonical(file, error);
  return error ? file : path;
}

std::string why_unreadable(const stdfs::path& file) {
  std::error_code error;
  const stdfs::file_status status = stdfs::status(file, error);
  if (stdfs::is_regular_file(status) || error == std::errc::permission_denied)
    return "no permission";
  if (stdfs::is_directory(status)) return "it is a folder";
  if (stdfs::exists(status)) return "not a regular file";
  return error == std::errc::no_such_file_or_directory ? "no such file" : error.message();
}

constexpr const char* kWhatAnExperimentIs =
    "an experiment is YAML: `dsv3: 1`, then `model:`, `optimizer:`, `data:`, `train:` ...";

// Keys allowed in a machine's config.yaml. Machine defaults for other keys would change an
// experiment without being visible in its file.
constexpr std::array kMachineKeys{"plugin_paths", "output", "tracker", "hub", "log"};

std::string setting_names() {
  std::string names;
  for (const auto& [key, variable] : kMachineSettings)
    names += (names.empty() ? "" : ", ") + std::string(key);
  return names;
}

// Expands the short forms of keys that the command line accepts.
std::string long_path(const std::string& path) {
  const std::string key = path.substr(0, path.find('.'));
  for (const auto& [shorter, section] :
       {std::pair("attention", "model."), std::pair("position", "model."),
        std::pair("feed_forward", "model."), std::pair("tokenizer", "data.")})
    if (key == shorter) return section + path;
  return path;
}

// Builds the tree {a: {b: value}} for the path a.b. `text_length` is the length of the path as
// written. If it was written in a short form, the omitted keys get the position of the short form.
Node tree_at(const std::string& path, size_t text_length, Position at, Node value) {
  const size_t shortened = path.size() - text_length;
  const auto position = [&](size_t begin) {
    return Position{at.source, at.line,
                    at.column + static_cast<int>(begin > shortened ? begin - shortened : 0)};
  };
  for (size_t end = path.size();;) {
    const size_t begin = path.rfind('.', end - 1) + 1;  // 0 if not found (npos + 1)
    Node map = make_map(at);
    map.add(path.substr(begin, end - begin), position(begin), std::move(value));
    if (begin == 0) return map;
    end = begin - 1;
    map.at = position(path.rfind('.', end - 1) + 1);
    value = std::move(map);
  }
}

Node read_yaml_text(Diagnostics& diagnostics, const stdfs::path& file, std::string text) {
  const bool binary = text.find('\0') != text.npos;
  const int source = diagnostics.add_source(file.string(), std::move(text), true);
  // Returned for an unusable file. Because it has no source position, check_version() skips it and
  // does not report a second error for the file.
  const Node nothing = make_map({});
  if (binary) {
    diagnostics.error({source, 0, 0}, 1, "a binary file, not YAML", {kWhatAnExperimentIs});
    return nothing;
  }
  std::optional<Node> node = parse(diagnostics, source);
  if (node && node->is_map()) return std::move(*node);
  if (node && node->is_null()) return make_map({source, 1, 1});
  if (node)
    diagnostics.error({source, 1, 1}, 1, "the file must be a map of keys and values",
                      {kWhatAnExperimentIs});
  return nothing;
}

class LayerReader {
 public:
  LayerReader(Diagnostics& diagnostics, const Catalog& catalog)
      : diagnostics_(diagnostics), catalog_(catalog) {}

  std::vector<Layer> read(const ExperimentRequest& request) {
    stored_ = request.stored;
    for (const MachineFile& file : request.machine_files) add_machine_file(file);
    if (request.text.empty())
      add_file(request.file);
    else
      add_tree(read_yaml_text(diagnostics_, request.file, request.text), request.file);
    if (request.stored) restrict_stored(layers_.back().trees[0], request.known_libraries);
    // Stop here, because errors in a file would cause misleading errors later.
    diagnostics_.throw_if_any();
    for (const Setting& setting : request.settings) add_setting(setting);
    if (!request.command_line.empty()) layers_.push_back({"command line"});
    for (const std::string& argument : request.command_line)
      if (auto tree =
              parse_setting(diagnostics_, diagnostics_.add_source("command line", argument, false)))
        layers_.back().trees.push_back(std::move(*tree));
    diagnostics_.throw_if_any();
    return std::move(layers_);
  }

 private:
  void add_machine_file(const MachineFile& file) {
    Node tree = read_yaml_file(diagnostics_, file.path);
    check_version(tree, false);
    if (!file.trusted)
      for_libraries(tree, [&](const Node&, Entry& library) {
        diagnostics_.error(library, "config.yaml in the current folder must not name libraries",
                           {kTrustedFiles});
      });
    tree.erase("dsv3");
    for (const auto& [key, variable] : kMachineSettings) tree.erase(key);
    tree.erase("run_id");  // for read_machine_config
    for (const Entry& entry : tree.entries)
      if (std::find(kMachineKeys.begin(), kMachineKeys.end(), entry.key) == kMachineKeys.end())
        diagnostics_.error(entry, "unknown key '" + entry.key + "' in the machine defaults",
                           {"known keys: plugin_paths, output, tracker, hub.endpoint, log.level, "
                            "log.system_interval, run_id, " +
                            setting_names() + "; set other keys in the experiment"});
    tree.erase("plugin_paths");  // for read_machine_config
    layers_.push_back({file.path.string(), {std::move(tree)}, true});
  }

  void add_file(const stdfs::path& file) {
    if (++files_ > kMaxFiles)
      throw ConfigError(file.string() + ": error: an experiment can have at most " +
                            std::to_string(kMaxFiles) + " files",
                        1);
    add_tree(read_yaml_file(diagnostics_, file), file);
  }

  void add_tree(Node&& tree, const stdfs::path& file) {
    const bool is_base = !open_.empty();
    open_.push_back(true_path(file));
    check_version(tree, !is_base);
    if (const Entry* extends = std::as_const(tree).find("extends"); extends && stored_)
      diagnostics_.error(*extends, "a stored experiment cannot extend files",
                         {"a run stores its experiment with all its values"});
    else if (extends)
      add_bases(*extends, file.parent_path());
    open_.pop_back();
    tree.erase("dsv3");
    tree.erase("extends");
    if (const Entry* paths = std::as_const(tree).find("plugin_paths")) {
      diagnostics_.error(*paths, "'plugin_paths' is a machine default",
                         {"put it in config.yaml, or use --plugin-path or DSV3_PLUGIN_PATH"});
      tree.erase("plugin_paths");
    }
    layers_.push_back({file.string(), {std::move(tree)}, true});
  }

  void add_bases(const Entry& extends, const stdfs::path& folder) {
    const Node& names = extends.value;
    if (names.is_scalar())
      add_base(names, folder);
    else if (names.is_list())
      for (const Node& name : names.items) add_base(name, folder);
    else
      diagnostics_.error(extends, "'extends' must be a file name or a list of file names");
  }

  void add_base(const Node& name, const stdfs::path& folder) {
    if (!name.is_scalar()) {
      diagnostics_.error(name, "'extends' must be a file name or a list of file names");
      return;
    }
    const stdfs::path base = (folder / name.text).lexically_normal();
    std::error_code error;
    if (!stdfs::is_regular_file(base, error)) {
      diagnostics_.error(name, "cannot read '" + base.string() + "': " + why_unreadable(base),
                         {"file names in 'extends' are relative to the file that contains them"});
      return;
    }
    const auto cycle = std::find(open_.begin(), open_.end(), true_path(base));
    if (cycle != open_.end()) {
      std::string chain;
      for (auto file = cycle; file != open_.end(); ++file)
        chain += file->filename().string() + " -> ";
      diagnostics_.error(name, "a file cannot extend itself", {chain + cycle->filename().string()});
      return;
    }
    add_file(base);
  }

  void check_version(const Node& tree, bool required) {
    const Entry* version = tree.find("dsv3");
    if (!version) {
      if (!required || tree.at.source < 0) return;
      if (tree.entries.empty())
        diagnostics_.error({tree.at.source, 0, 0}, 1, "the file is empty", {kWhatAnExperimentIs});
      else
        diagnostics_.error({tree.at.source, 1, 1}, 1, "the key 'dsv3' is missing",
                           {"write 'dsv3: 1', the version of the experiment format, at the top"});
    } else if (!version->value.is_scalar() || version->value.text != "1") {
      diagnostics_.error(
          version->value, "unsupported experiment format; this dsv3 reads format 1",
          {"write 'dsv3: 1', or use the dsv3 version that this file was written for"});
    }
  }

  /// Calls `f(component, entry)` for each entry `library` in the tree.
  template <class F>
  static void for_libraries(Node& node, const F& f) {
    if (Entry* library = node.find("library")) f(node, *library);
    for (Entry& entry : node.entries) for_libraries(entry.value, f);
    for (Node& item : node.items) for_libraries(item, f);
  }

  /// Returns the library that the user has chosen for the stored entry `library` of `component`; ""
  /// if there is none.
  std::string chosen_library(const Node& component, const Entry& library,
                             const std::vector<std::string>& known) const {
    const std::string& stored = library.value.text;
    if (std::find(known.begin(), known.end(), stored) != known.end()) return stored;
    const Entry* plugin = component.find("plugin");
    return plugin ? catalog_.searched_library(plugin->value.text, stored) : "";
  }

  /// Opening a stored experiment must not run code that came with it, so it may name only libraries
  /// that the user names too.
  void restrict_stored(Node& tree, const std::vector<std::string>& known) {
    // A key from older versions. It has no effect, because a stored experiment sets every option.
    if (Node* model = find_path(tree, "model")) model->erase("conventions");
    for_libraries(tree, [&](const Node& component, Entry& library) {
      const std::string chosen = chosen_library(component, library, known);
      if (chosen.empty())
        diagnostics_.error(
            library, "a stored experiment cannot load a library by itself",
            {"if you trust it, pass --plugin-path " + shell_quoted(library.value.text)});
      else
        library.value = make_value(chosen, library.value.at);
    });
  }

  void add_setting(const Setting& setting) {
    if (layers_.back().label != setting.label) layers_.push_back({setting.label});
    const int source = diagnostics_.add_source(
        setting.label, setting.path + "=" + value_yaml(setting.value), false);
    const auto length = static_cast<int>(setting.path.size());
    layers_.back().trees.push_back(tree_at(setting.path, setting.path.size(), {source, 1, 1},
                                           make_value(setting.value, {source, 1, length + 2})));
  }

  Diagnostics& diagnostics_;
  const Catalog& catalog_;
  std::vector<Layer> layers_;
  bool stored_ = false;
  size_t files_ = 0;
  std::vector<stdfs::path> open_;  // files whose `extends` is currently being read
};

// Whether a setting's value is YAML, that is, enclosed in quotes, brackets or braces. "[a] b.txt"
// is not YAML but a file name.
bool is_yaml(const std::string& text) {
  const size_t end = text.find_last_not_of(' ');
  if (end == text.npos) return true;  // no value
  const char first = text[0], last = text[end];
  const char closing = first == '[' ? ']' : first == '{' ? '}' : '\0';
  if (closing) return last == closing || text.find(closing) == text.npos;
  if (first != '"' && first != '\'') return false;
  // A quoted value is YAML only if nothing follows the closing quote.
  Diagnostics ignored;
  const auto node = parse(ignored, ignored.add_source("", text, false));
  return !ignored.any() && node && node->is_scalar() && node->quoted;
}

}  // namespace

std::optional<Node> parse_setting(Diagnostics& diagnostics, int source) {
  const std::string text = diagnostics.text(source);
  const size_t equals = text.find('=');
  const std::string key = text.substr(0, equals);
  if (equals == text.npos || key.empty() ||
      !std::all_of(key.begin(), key.end(), is_key_character) ||
      ("." + key + ".").find("..") != std::string::npos) {
    diagnostics.error({source, 1, 1}, text.size(), "expected key=value",
                      {"for example train.steps=100 or attention=mha"});
    return std::nullopt;
  }
  const std::string value_text = text.substr(equals + 1);
  const Position value_at{source, 1, static_cast<int>(equals) + 2};
  std::optional<Node> value;
  if (value_text == "null" || value_text == "~") {
    value = make_node(Node::Type::null, value_at);
  } else if (is_yaml(value_text)) {
    value = parse(diagnostics, source, equals + 1);
    if (value && value->is_null()) value->at = {source, 1, static_cast<int>(equals) + 1};
  } else {
    value = make_scalar(value_text, value_at);
    value->literal = true;
  }
  if (!value) return std::nullopt;
  return tree_at(long_path(key), key.size(), {source, 1, 1}, std::move(*value));
}

std::vector<Layer> read_layers(const ExperimentRequest& request, Diagnostics& diagnostics,
                               const Catalog& catalog) {
  return LayerReader(diagnostics, catalog).read(request);
}

Node read_yaml_file(Diagnostics& diagnostics, const stdfs::path& file) {
  std::error_code error;
  const bool regular = stdfs::is_regular_file(file, error);
  std::ifstream stream;
  if (regular) stream.open(file, std::ios::binary);
  if (!stream.is_open()) {
    diagnostics.error({diagnostics.add_source(file.string(), "", false), 0, 0}, 0,
                      "cannot read '" + file.string() + "': " + why_unreadable(file),
                      {"relative paths start at the current folder"});
    return make_map({});
  }
  // One byte more than the parser accepts, so that it rejects longer files.
  std::string text(kMaxBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(stream.gcount()));
  return read_yaml_text(diagnostics, file, std::move(text));
}

}  // namespace dsv3::config
