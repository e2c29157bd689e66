// A checked experiment: the experiment file after merging, with typed values.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/sdk/options.h>
#include <dsv3/sdk/registrar.h>

namespace dsv3 {

/// The origin of a value: a location in a file, or a configuration layer such as "command line" or
/// "default".
struct Origin {
  std::string source;        ///< file name, or the layer's label
  int line = 0, column = 0;  ///< 1-based; line 0 = the value is not from a file
  /// Source text of a layer that is not a file, such as "train.steps=7". `column` is a column in
  /// it.
  std::string setting = {};

  std::string text() const;       ///< "file:line:col" or the label
  std::string full_text() const;  ///< like text(), but with the setting if there is one: "command
                                  ///< line: train.steps=7"
};

/// One value of a resolved experiment, which includes defaults.
struct ResolvedValue {
  std::string path;   ///< "train.steps", "optimizer.0.lr"
  OptionValue value;  ///< std::monostate = unset
  Origin origin;
  /// YAML to write instead of the value: a keyword such as `auto`, or text with ${env:NAME},
  /// because the values of environment variables are never stored or printed. Empty = write the
  /// value itself.
  std::string written = {};

  /// Returns the value as YAML on one line.
  std::string yaml() const;
};

/// All values of a checked experiment, in the order in which YAML lists them.
struct Resolved {
  std::vector<ResolvedValue> values;

  /// Returns the value at `path`, or nullptr if there is none.
  const ResolvedValue* find(const std::string& path) const;
  /// Replaces the value at `path`, which must exist.
  void set(const std::string& path, OptionValue value, Origin origin);
  /// Returns YAML that loads as an identical experiment. With `origins`, a comment after each value
  /// names its origin.
  std::string yaml(bool origins = false) const;
};

/// A component's name and checked options.
struct ComponentSpec {
  Kind kind = Kind::attention;
  std::string plugin;
  OptionValues options;  ///< only options that the experiment sets; the plugin provides defaults
                         ///< for the others
  std::string library;   ///< absolute path from `library:`, otherwise empty
  Origin origin;         ///< source location of the plugin's name
  std::string path;      ///< path in the experiment: "model.attention", "optimizer.1"
};

/// A component for layers first..last (inclusive). MTP modules use the last layer's component.
struct LayerRange {
  int64_t first = 0, last = 0;
  ComponentSpec component;
};

struct ModelOptions {
  int64_t hidden = 256;
  int64_t layers = 4;
  std::optional<int64_t> vocab;  ///< unset = the tokenizer's vocabulary size
  bool tied_head = false;
  std::string recompute = "none";  ///< none | full: activation checkpointing per block
  static void describe(OptionSchema<ModelOptions>& s);
};
struct NormOptions {
  double eps = 1e-6;
  std::string place = "pre";  ///< pre | post (after the sublayer, before the addition) | both
  static void describe(OptionSchema<NormOptions>& s);
};
struct LossOptions {
  double z = 0;                  ///< weight of log(Z)^2
  std::optional<int64_t> chunk;  ///< number of rows whose logits are in memory at once; unset = the
                                 ///< operator chooses
  static void describe(OptionSchema<LossOptions>& s);
};
struct InitOptions {
  double std = 0.006;
  static void describe(OptionSchema<InitOptions>& s);
};
struct MtpOptions {
  int64_t depth = 0;
  double weight = 0.3;
  std::string input = "normed";  ///< normed | raw: hidden states after or before the final norm
  std::string concat = "embedding_first";  ///< embedding_first | hidden_first
  std::string denominator = "main";  ///< main | own: normalize each depth's loss by the number of
                                     ///< valid targets of the main loss, or of that depth
  static void describe(OptionSchema<MtpOptions>& s);
};
struct TrainOptions {
  std::optional<int64_t> steps, tokens;  ///< exactly one of steps and tokens is set
  int64_t batch = 8;
  std::optional<int64_t> micro_batch;  ///< unset = all of a rank's rows in the batch
  int64_t sequence = 256;
  double clip = 1.0;               ///< 0 = off
  std::string precision = "auto";  ///< auto | fp32 | bf16
  int64_t seed = 1;
  int64_t log_every = 10;
  int64_t trace_every = 100;        ///< 0 = off
  std::optional<int64_t> threads;   ///< intra-op threads; unset = all cores
  std::string device = "auto";      ///< auto | cpu | cuda
  std::string ops = "fused";        ///< fused | reference
  std::string not_finite = "stop";  ///< stop | skip
  int64_t max_skipped = 10;         ///< skipped updates in a row before the run fails
  bool deterministic = false;       ///< on a GPU, use only kernels whose results are bit-identical
                                    ///< when repeated
  static void describe(OptionSchema<TrainOptions>& s);
};
struct ValidationOptions {
  int64_t every = 0;     ///< interval in steps; 0 = only before the first and after the last step
  int64_t batches = 20;  ///< number of batches; fewer if the held-out set is smaller
  double share = 0.01;
  static void describe(OptionSchema<ValidationOptions>& s);
};
struct SamplesOptions {
  int64_t every = 0;  ///< 0 = off
  std::vector<std::string> prompts{"The"};
  int64_t tokens = 64;
  double temperature = 0.8;
  int64_t top_k = 50;
  static void describe(OptionSchema<SamplesOptions>& s);
};
struct CheckpointOptions {
  int64_t every = 0;  ///< interval in steps; 0 = only at the end of training
  int64_t keep_best = 3;
  static void describe(OptionSchema<CheckpointOptions>& s);
};

/// One optimizer group, in the experiment's order. A parameter belongs to the first group that
/// matches it.
struct OptimizerGroup {
  std::string name;                ///< unique; derived from the plugin and the roles by default
  std::vector<std::string> roles;  ///< empty = all roles
  std::string match;               ///< regular expression (PCRE2) for full parameter names; empty =
                                   ///< all
  ComponentSpec component;
};

/// In place of a strategy's name: chosen when the run starts, by the memory that it needs.
inline constexpr const char* kAutoStrategy = "auto";

struct Experiment {
  std::string name, file;
  ModelOptions model;
  NormOptions norm;
  LossOptions loss;
  InitOptions init;
  MtpOptions mtp;
  std::vector<LayerRange> attention, feed_forward;  ///< tile layers 0..layers-1
  ComponentSpec position;
  std::vector<OptimizerGroup> optimizer;
  ComponentSpec schedule, strategy, data;
  double timeout = 0;       ///< `strategy.timeout`, in seconds
  ComponentSpec tokenizer;  ///< empty plugin = none
  TrainOptions train;
  ValidationOptions validation;
  SamplesOptions samples;
  CheckpointOptions checkpoint;
  std::vector<ComponentSpec> tracker;
  /// Components of kinds that have no field in this struct.
  std::map<Kind, std::vector<ComponentSpec>> others;
  std::string output = "runs";  ///< machine default: folder that contains the run folders
  std::map<std::string, std::string> tags;  ///< by name: "team", "mlflow.note.content"
  std::string log_level = "info";
  double system_interval = 10;  ///< `log.system_interval`, in seconds; 0 = no system metrics
  std::string hub_endpoint;  ///< machine default: URL of the Hugging Face hub
  /// Values of the options on which implementations differ, including defaults, by
  /// "<kind>.<plugin>.<option>" or the core's path: "position.rope.layout" -> "interleaved",
  /// "model.norm.place" -> "pre". If another component of the same plugin has a different value,
  /// its key also contains the layers: "feed_forward.moe.score (layers 2-11)".
  std::map<std::string, std::string> conventions;
  Resolved resolved;               ///< the merged experiment, including the plugins' defaults
  std::vector<std::string> notes;  ///< notes for the user, e.g. on options dropped because a layer
                                   ///< changed the plugin

  /// Returns the origin of the resolved value at `path`, such as "train.steps" or "optimizer.0.lr",
  /// or "default" if the path has no value.
  Origin origin(const std::string& path) const;
  /// All components, in no particular order.
  std::vector<const ComponentSpec*> components() const;
};

}  // namespace dsv3
