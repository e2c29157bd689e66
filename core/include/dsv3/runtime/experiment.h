// A checked experiment: what an experiment file means after merging, with every value typed.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <dsv3/sdk/options.h>
#include <dsv3/sdk/registrar.h>

namespace dsv3 {

/// Where a value came from: a file position, "command line", "default" ...
struct Origin {
  std::string source;        ///< file name, or words such as "command line"
  int line = 0, column = 0;  ///< 1-based; 0 = not a file position
  std::string text() const;  ///< "file:line:col" or the words
};

/// A named component with checked options.
struct ComponentSpec {
  Kind kind = Kind::attention;
  std::string plugin;
  OptionValues
      options;  ///< only what some layer of the experiment set; defaults stay with the plugin
  std::string library;  ///< from `library:`, absolute; else empty
  Origin origin;        ///< of the plugin's name
};

/// A component for layers first..last (inclusive; MTP modules repeat the last layer's).
struct LayerRange {
  int64_t first = 0, last = 0;
  ComponentSpec component;
};

struct ModelOptions {
  int64_t hidden = 256;
  int64_t layers = 4;
  int64_t vocab = 0;  ///< 0 = `auto`, the tokenizer's size
  bool tied_head = false;
  std::string recompute = "none";        ///< none | full: activation checkpointing per block
  std::string conventions = "deepseek";  ///< implementation whose conventions unset options have
  static void describe(OptionSchema<ModelOptions>& s);
};
struct NormOptions {
  double eps = 1e-6;
  std::string place =
      "pre";  ///< pre | post (after the sublayer, before the residual is added) | both
  static void describe(OptionSchema<NormOptions>& s);
};
struct LossOptions {
  double z = 0;       ///< weight of log(Z)^2
  int64_t chunk = 0;  ///< rows of logits held at once; 0 = chosen by the operator
  static void describe(OptionSchema<LossOptions>& s);
};
struct InitOptions {
  double std = 0.006;
  static void describe(OptionSchema<InitOptions>& s);
};
struct MtpOptions {
  int64_t depth = 0;
  double weight = 0.3;
  std::string input =
      "normed";  ///< h^0 and later hidden states after | before their final norm: normed | raw
  std::string concat = "embedding_first";  ///< embedding_first | hidden_first
  std::string denominator = "main";        ///< valid targets that divide a depth's loss: main | own
  static void describe(OptionSchema<MtpOptions>& s);
};
struct TrainOptions {
  int64_t steps = 0, tokens = 0;  ///< exactly one is set
  int64_t batch = 8, micro_batch = 0 /* 0 = auto: the batch */, sequence = 256;
  double clip = 1.0;               ///< 0 = off
  std::string precision = "auto";  ///< auto | fp32 | bf16
  int64_t seed = 1;
  int64_t log_every = 10;
  int64_t threads = 0;              ///< intra-op threads, 0 = all cores
  std::string device = "auto";      ///< auto | cpu | cuda
  std::string ops = "fused";        ///< fused | reference
  std::string not_finite = "stop";  ///< stop | skip
  static void describe(OptionSchema<TrainOptions>& s);
};
struct ValidationOptions {
  int64_t every = 0;     ///< 0 = only before the first and after the last step
  int64_t batches = 20;  ///< of train.batch sequences; fewer when the held-out text ends
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
  int64_t every = 0;  ///< 0 = only at the end
  int64_t keep_best = 3;
  static void describe(OptionSchema<CheckpointOptions>& s);
};

/// One optimizer group, in order of the experiment; the first match owns a parameter.
struct OptimizerGroup {
  std::string name;                ///< unique; made from plugin and roles unless given
  std::vector<std::string> roles;  ///< empty = every role
  std::string match;               ///< std::regex (ECMAScript) over full names; empty = all
  ComponentSpec component;
};

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
  ComponentSpec tokenizer;  ///< plugin empty = none
  TrainOptions train;
  ValidationOptions validation;
  SamplesOptions samples;
  CheckpointOptions checkpoint;
  std::vector<ComponentSpec> tracker;
  std::string output = "runs";  ///< machine default: where run folders go
  std::string log_level = "info";
  std::string hub_endpoint;  ///< machine default: address of the hub
  /// "<kind>.<plugin>.<option>" or the core's path -> value, defaults included:
  /// "position.rope.layout" -> "interleaved", "model.norm.place" -> "pre". A second component of
  /// the same plugin with another value has its place behind: "feed_forward.moe.score (layers
  /// 2-11)".
  std::map<std::string, std::string> conventions;
  std::string resolved;  ///< the merged tree as YAML, defaults of plugins included; loads again as
                         ///< an equal experiment. What came from ${env:NAME} stays that reference.
  std::vector<std::string> notes;  ///< e.g. options dropped when a plugin was swapped
};

}  // namespace dsv3
