// Addresses and credentials of this machine, for trackers.
#include <algorithm>
#include <array>
#include <fstream>
#include <sys/stat.h>
#include <unistd.h>

#include <dsv3/runtime/config.h>
#include <dsv3/sdk/log.h>

#include "config/layers.h"
#include "config/values.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

constexpr std::array<const char*, 2> kPrefixes{"MLFLOW_", "DATABRICKS_"};

bool is_setting(const std::string& name) {
  return std::ranges::any_of(kPrefixes,
                             [&](const char* prefix) { return name.starts_with(prefix); });
}

bool is_unset(const std::string& value) {
  return value.empty() || value == "null" || value == "~";
}

SettingsLayer environment_layer() {
  SettingsLayer layer{"environment", {}};
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    if (is_setting(name) && !is_unset(text.substr(name.size() + 1)))
      layer.values.emplace(name, text.substr(name.size() + 1));
  }
  return layer;
}

std::string trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r");
  return begin == text.npos ? "" : text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
}

/// The value after the '=' of a line: quoted, or up to a comment.
std::string value_in(const std::string& text) {
  const std::string value = trimmed(text);
  if (!value.empty() && (value[0] == '"' || value[0] == '\''))
    return value.substr(1, value.find(value[0], 1) - 1);
  return trimmed(text.substr(0, text.find(" #")));
}

/// Warns if other users can read a file with secrets.
void check_permissions(const stdfs::path& file) {
  struct stat info {};
  if (::stat(file.c_str(), &info) == 0 && (info.st_mode & (S_IRGRP | S_IROTH)))
    log::warning(file.string() +
                 " contains credentials, and other users can read it; run chmod 600 " +
                 file.string());
}

bool is_secret(const std::string& name) {
  return std::ranges::any_of(std::array{"TOKEN", "SECRET", "PASSWORD"},
                             [&](const char* word) { return name.find(word) != name.npos; });
}

/// Reads lines NAME=VALUE, as shells and dotenv do. Ignores other lines.
SettingsLayer env_file_layer(const stdfs::path& path) {
  SettingsLayer layer{path.string(), {}};
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    line = trimmed(line);
    if (line.starts_with("export ")) line = trimmed(line.substr(7));
    const size_t equals = line.find('=');
    if (line.starts_with('#') || equals == line.npos) continue;
    const std::string name = trimmed(line.substr(0, equals)),
                      value = value_in(line.substr(equals + 1));
    if (is_setting(name) && !is_unset(value)) layer.values[name] = value;
  }
  if (std::ranges::any_of(layer.values, [](const auto& entry) { return is_secret(entry.first); }))
    check_permissions(path);
  return layer;
}

SettingsLayer config_layer(const MachineFile& file) {
  config::Diagnostics diagnostics;
  const config::Node tree = config::read_yaml_file(diagnostics, file.path);
  config::Resolver resolver(tree, diagnostics);
  SettingsLayer layer{file.path.string(), {}};
  OptionSpec spec;
  spec.type = OptionType::string;
  for (const auto& [key, name] : config::kMachineSettings) {
    const config::Entry* entry = tree.find(key);
    if (!entry || entry->value.is_null()) continue;
    if (!file.trusted && entry->value.is_scalar() && resolver.resolve(entry->value).environment)
      diagnostics.error(*entry,
                        "config.yaml in the current folder must not read '" + std::string(key) +
                            "' from the environment",
                        {config::kTrustedFiles});
    if (auto value = convert(spec, entry->value, "'" + std::string(key) + "'", resolver))
      if (auto& text = std::get<std::string>(*value); !is_unset(text)) layer.values[name] = text;
  }
  diagnostics.throw_if_any();
  if (std::ranges::any_of(layer.values, [](const auto& entry) { return is_secret(entry.first); }))
    check_permissions(file.path);
  return layer;
}

}  // namespace

std::vector<SettingsLayer> machine_settings(const std::vector<MachineFile>& files) {
  std::vector<SettingsLayer> layers{environment_layer()};
  std::error_code ignored;
  if (stdfs::is_regular_file(".env", ignored)) layers.push_back(env_file_layer(".env"));
  for (auto file = files.rbegin(); file != files.rend(); ++file)
    layers.push_back(config_layer(*file));
  std::erase_if(layers, [](const SettingsLayer& layer) { return layer.values.empty(); });
  return layers;
}

}  // namespace dsv3
