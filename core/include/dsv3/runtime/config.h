// Loads an experiment file, config.yaml and the command line into a checked Experiment.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <dsv3/runtime/experiment.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/tracker.h>

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
  /// Returns the path of the library on the search path that has the file name of `library` and
  /// provides a component called `name`; "" if there is none. Stored experiments may name libraries
  /// only if the user has put them on the search path.
  virtual std::string searched_library(const std::string& name,
                                       const std::string& library) const = 0;
};

/// A file with machine defaults.
struct MachineFile {
  std::filesystem::path path;
  /// Whether it may choose code to load. False for config.yaml in the current folder, which may
  /// have come with a model or a dataset.
  bool trusted = true;
};

/// Machine defaults that are needed before plugins can be found.
struct MachineConfig {
  std::vector<std::string> plugin_paths;  ///< absolute, or relative to the current folder
  std::string output;                     ///< parent folder of all run folders; empty = not set
  std::string run_id;                     ///< run to resume; empty = not set
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
/// `machine_files`, files that the experiment extends, the experiment, `settings` (consecutive
/// settings with the same label form one layer), the command line.
struct ExperimentRequest {
  std::filesystem::path file;
  /// The experiment's YAML if it is stored inside another file, such as a checkpoint's manifest.
  /// Errors then name `file`, and relative paths start at its folder.
  std::string text;
  bool stored = false;  ///< true = a resolved experiment from a run or checkpoint
  /// Libraries that a stored experiment may name in addition to those on the search path.
  std::vector<std::string> known_libraries;
  std::vector<MachineFile> machine_files;  ///< lowest precedence first
  std::vector<Setting> settings;
  std::vector<std::string> command_line;  ///< key=value, in order
  std::optional<int64_t> debug_vocab;     ///< for --debug: replaces `model.vocab: auto`
};

/// Returns the files with machine defaults: ~/.config/dsv3/config.yaml (or the one in
/// $XDG_CONFIG_HOME), then `chosen` (--config). If `chosen` is empty, config.yaml in the first of
/// `folders` that contains one takes its place, untrusted. Leaves out files that do not exist,
/// except for `chosen`.
std::vector<MachineFile> machine_files(const std::string& chosen,
                                       const std::vector<std::filesystem::path>& folders);

/// Reads only the settings needed to find plugins. Throws a ConfigError if an untrusted file sets
/// plugin_paths.
MachineConfig read_machine_config(const std::vector<MachineFile>& files);

/// Returns the addresses and credentials of this machine: from the environment, from .env in the
/// current folder, and from the files with machine defaults. Throws a ConfigError if a file cannot
/// be read. Warns if other users can read a file with credentials.
std::vector<SettingsLayer> machine_settings(const std::vector<MachineFile>& files);

/// Reads, merges and checks an experiment. Throws a ConfigError that lists every error.
Experiment load_experiment(const ExperimentRequest& request, Catalog& catalog);

/// The sections of an experiment that the core defines, by path, outer sections first. The top
/// level has the path "".
const std::vector<std::pair<std::string, Schema>>& core_sections();

}  // namespace dsv3
