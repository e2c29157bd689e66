// From an experiment file, config.yaml and the command line to a checked Experiment.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <dsv3/runtime/experiment.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {

/// What the checker asks about components; `Plugins` behind it in programs, a table in tests.
class Catalog {
 public:
  virtual ~Catalog();
  /// Options of a component; null = unknown name. Loads the library; throws when found but
  /// unloadable.
  virtual const Schema* schema(Kind kind, const std::string& name, const std::string& library) = 0;
  /// YAML that a short form stands for, e.g. optimizer "muon"; empty = no such alias.
  virtual std::string alias(Kind kind, const std::string& name) = 0;
  /// Known component names and aliases of the kind, for did-you-mean and sibling's keys.
  virtual std::vector<std::string> names(Kind kind) = 0;
  /// Where names were looked for, for the error text.
  virtual std::string searched() const = 0;
};

/// Machine defaults, read before any plugin can be found.
struct MachineConfig {
  std::vector<std::string> plugin_paths;  ///< relative ones resolved against the file's folder
  std::string file;                       ///< empty = none read
};

/// All diagnostics of an experiment at once; what() is the full text, one block each.
class ConfigError : public Error {
 public:
  ConfigError(const std::string& text, int count) : Error(text, ExitCode::usage), count(count) {}
  ~ConfigError() override;
  int count;
};

struct ExperimentRequest {
  std::filesystem::path file;
  /// The experiment's YAML when it is kept inside another file, such as a checkpoint's manifest;
  /// `file` then names that one for errors, and relative names start at its folder.
  std::string text;
  std::vector<std::string> overrides;    ///< key=value of the command line, in order
  std::filesystem::path machine_config;  ///< config.yaml; empty = none
  /// Values put on top of everything, e.g. what --debug sets; reported as `label`.
  std::vector<std::string> forced;
  std::string forced_label = "--debug";
};

/// Reads only what finding plugins needs.
MachineConfig read_machine_config(const std::filesystem::path& file);

/// Reads, merges and checks. Throws ConfigError with every mistake found.
Experiment load_experiment(const ExperimentRequest& request, Catalog& catalog);

/// The resolved experiment as YAML with each value's origin as a comment, for --print-config.
std::string print_with_origins(const ExperimentRequest& request, Catalog& catalog);

}  // namespace dsv3
