// Loads an experiment file, config.yaml and the command line into a checked Experiment.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <dsv3/runtime/experiment.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {

/// Provides component schemas to the configuration checker. Programs use `Plugins`; tests use a
/// table.
class Catalog {
 public:
  virtual ~Catalog();
  /// Returns a component's options, or null if the name is unknown. Loads the component's library
  /// and throws if that fails.
  virtual const Schema* schema(Kind kind, const std::string& name, const std::string& library) = 0;
  /// Returns the YAML that an alias such as optimizer "muon" stands for, or "" if there is no such
  /// alias.
  virtual std::string alias(Kind kind, const std::string& name) const = 0;
  /// Returns the known component names and aliases for a kind. They are used for "did you mean" and
  /// to recognise options of other components.
  virtual std::vector<std::string> names(Kind kind) const = 0;
  /// Returns the paths that were searched for components, for error messages.
  virtual std::string searched() const = 0;
};

/// Machine defaults that are needed before plugins can be found.
struct MachineConfig {
  std::vector<std::string> plugin_paths;  ///< absolute, or relative to the current folder
  std::string output;                     ///< parent folder of all run folders; empty = not set
  std::string file;                       ///< file that was read; empty = none
};

/// Reports all errors in an experiment. what() contains one paragraph per error.
class ConfigError : public Error {
 public:
  ConfigError(const std::string& text, int count) : Error(text, ExitCode::usage), count(count) {}
  ~ConfigError() override;
  int count;
};

/// A value set by a program rather than by a file or the command line.
struct Setting {
  std::string path;   ///< path of the key, such as "data.tokenizer.file"
  OptionValue value;  ///< new value, not parsed as YAML; std::monostate removes a component
  std::string label;  ///< name of the layer, printed as the value's origin: "--debug", "sweep
                      ///< point"
};

/// What to load. Configuration layers, from lowest to highest precedence: defaults,
/// `machine_config`, files that the experiment extends, the experiment, `settings` (consecutive
/// settings with the same label form one layer), the command line.
struct ExperimentRequest {
  std::filesystem::path file;
  /// The experiment's YAML if it is stored inside another file, such as a checkpoint's manifest.
  /// Errors then name `file`, and relative paths start at its folder.
  std::string text;
  bool stored = false;                   ///< true = a resolved experiment from a run or checkpoint
  std::filesystem::path machine_config;  ///< config.yaml; empty = none
  std::vector<Setting> settings;
  std::vector<std::string> command_line;  ///< key=value, in order
  std::optional<int64_t> debug_vocab;     ///< for --debug: replaces `model.vocab: auto`
};

/// Reads only the settings needed to find plugins.
MachineConfig read_machine_config(const std::filesystem::path& file);

/// Reads, merges and checks an experiment. Throws a ConfigError that lists every error.
Experiment load_experiment(const ExperimentRequest& request, Catalog& catalog);

/// The sections of an experiment that the core defines, by path, outer sections first. The top
/// level has the path "".
const std::vector<std::pair<std::string, Schema>>& core_sections();

}  // namespace dsv3
