#include "plugin/registry.h"

#include <algorithm>
#include <dlfcn.h>
#include <optional>
#include <string_view>

// toml++ 3.3 asserts on some malformed input instead of reporting it, so asserts are off here,
// always.
#ifndef NDEBUG
#define NDEBUG
#endif
#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

namespace dsv3 {
namespace {

constexpr uint64_t kLargestRegistry = 1 << 20;

using Keys = std::initializer_list<std::string_view>;

class Reader {
 public:
  explicit Reader(std::filesystem::path file) : file_(std::move(file)) {}

  Registry read() {
    const std::string text = fs::read(file_, kLargestRegistry);
    const toml::parse_result parsed = toml::parse(std::string_view(text), file_.string());
    if (!parsed) fail(parsed.error().source(), std::string(parsed.error().description()));
    const toml::table& root = parsed.table();
    check_keys(root, {"registry", "set", "plugin", "alias"}, "a registry");
    const toml::node* format = root.get("registry");
    if (!format || format->value<int64_t>() != 1)
      fail((format ? *format : root).source(), "this dsv3 reads registries with `registry = 1`");
    Registry registry;
    for (const toml::table* table : tables(root, "plugin"))
      registry.plugins.push_back(plugin(*table));
    for (const toml::table* table : tables(root, "alias"))
      registry.aliases.push_back(alias(*table));
    return registry;
  }

 private:
  [[noreturn]] void fail(const toml::source_region& where, const std::string& what) const {
    throw Error(file_.string() + ":" + std::to_string(where.begin.line) + ":" +
                    std::to_string(where.begin.column) + ": error: " + what,
                ExitCode::plugin);
  }

  void check_keys(const toml::table& table, Keys known, const char* of) const {
    for (const auto& [key, node] : table) {
      if (std::find(known.begin(), known.end(), key.str()) != known.end()) continue;
      std::string list;
      for (std::string_view one : known) list += (list.empty() ? "" : ", ") + std::string(one);
      fail(key.source(),
           "unknown key '" + std::string(key.str()) + "' in " + of + "; known keys: " + list);
    }
  }

  std::vector<const toml::table*> tables(const toml::table& root, std::string_view key) const {
    std::vector<const toml::table*> found;
    const toml::node* node = root.get(key);
    if (!node) return found;
    const std::string wanted =
        "'" + std::string(key) + "' must be written [[" + std::string(key) + "]]";
    if (!node->is_array()) fail(node->source(), wanted);
    for (const toml::node& element : *node->as_array()) {
      if (!element.is_table()) fail(element.source(), wanted);
      found.push_back(element.as_table());
    }
    return found;
  }

  std::string text(const toml::table& table, std::string_view key, bool needed = true) const {
    const toml::node* node = table.get(key);
    if (!node && !needed) return "";
    if (!node) fail(table.source(), "key '" + std::string(key) + "' is missing");
    if (!node->is_string()) fail(node->source(), "'" + std::string(key) + "' must be a string");
    return node->as_string()->get();
  }

  Kind kind(const toml::table& table) const {
    const std::string name = text(table, "kind");
    try {
      return kind_from_name(name);
    } catch (const Error& e) {
      fail(table.get("kind")->source(), e.what());
    }
  }

  PluginEntry plugin(const toml::table& table) const {
    check_keys(table, {"kind", "name", "library", "version", "status", "summary", "docs"},
               "[[plugin]]");
    PluginEntry entry;
    entry.kind = kind(table);
    entry.name = text(table, "name");
    entry.version = text(table, "version");
    entry.status = text(table, "status");
    entry.summary = text(table, "summary");
    entry.docs = text(table, "docs", false);
    entry.registry = file_;
    entry.library_text = text(table, "library");
    const auto candidates = library_candidates(file_, entry.library_text);
    std::error_code ignored;
    const auto found = std::find_if(candidates.begin(), candidates.end(), [&](const auto& path) {
      return std::filesystem::exists(path, ignored);
    });
    entry.library = found == candidates.end() ? candidates.front() : *found;
    return entry;
  }

  Alias alias(const toml::table& table) const {
    check_keys(table, {"kind", "name", "yaml"}, "[[alias]]");
    Alias alias;
    alias.kind = kind(table);
    alias.name = text(table, "name");
    alias.yaml = text(table, "yaml");
    alias.registry = file_;
    return alias;
  }

  std::filesystem::path file_;
};

}  // namespace

Registry read_registry(const std::filesystem::path& file) {
  return Reader(file).read();
}

std::vector<std::filesystem::path> library_candidates(const std::filesystem::path& registry,
                                                      const std::string& library) {
  const std::filesystem::path folder = registry.parent_path();
  return {(folder / library).lexically_normal(),
          (folder / "../lib/dsv3/plugins" / library).lexically_normal(),
          (own_prefix() / "lib/dsv3/plugins" / library).lexically_normal()};
}

std::filesystem::path own_prefix() {
  Dl_info info{};
  if (!dladdr(reinterpret_cast<const void*>(&own_prefix), &info) || !info.dli_fname) return {};
  std::error_code failed;
  const auto library = std::filesystem::canonical(info.dli_fname, failed);
  return failed ? std::filesystem::path() : library.parent_path().parent_path();
}

}  // namespace dsv3
