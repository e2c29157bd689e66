// Interface for format plugins, which describe and store models in the layout of a Hugging Face
// architecture.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <dsv3/sdk/options.h>
#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

/// The plugin and options of one component of a model. When a model is written, `options` contains
/// every option of the plugin, including defaults. When a model is read, it contains only the
/// options that the format sets.
struct ComponentDescription {
  std::string plugin;
  OptionValues options;
  template <class T>
  const T& option(const std::string& key) const {
    return std::get<T>(options.at(key));
  }
  bool operator==(const ComponentDescription&) const = default;
};

/// A model as dsv3 describes it: the `model` section of an experiment, layer by layer. MTP modules
/// use the last layer's components.
struct ModelDescription {
  int64_t hidden = 0, layers = 0, vocab = 0;
  bool tied_head = false;
  double norm_eps = 1e-6;
  std::string norm_place = "pre";
  double init_std = 0.02;
  int64_t mtp_depth = 0;
  std::string mtp_concat = "embedding_first";  ///< order of the two inputs to an MTP module's
                                               ///< projection
  int64_t sequence = 0;  ///< T, maximum training sequence length or context length, in tokens
  std::vector<ComponentDescription> attention, feed_forward;  ///< one per layer
  ComponentDescription position;
  /// Shapes of all parameters and buffers by full name, from which a format can determine sizes
  /// that the plugin chose itself (`hidden: auto`). Empty in a model that a format read.
  std::map<std::string, std::vector<int64_t>> shapes;
};

/// Maps the rows of a stored tensor to rows of a parameter or buffer. Row i of the stored tensor is
/// row `first_row + (rows.empty() ? i : rows[i])` of `source` viewed as [rows, last dimension]. A
/// vector is one row.
struct TensorPlace {
  std::string name;            ///< name in the Hugging Face folder, e.g.
                               ///< model.layers.3.mlp.gate.weight
  std::vector<int64_t> shape;  ///< in the folder
  std::string source;          ///< full name of the model's parameter or buffer
  int64_t first_row = 0;
  std::vector<int64_t> rows;  ///< one index per row; empty = consecutive rows
  bool keep_fp32 = false;     ///< stored in fp32, regardless of the dtype of other tensors
  /// Whether the tensor repeats values that another tensor stores. On import, the copy may be
  /// missing, but must not differ.
  bool copy = false;
  bool written = true;  ///< false = a copy that is read but never written
};

/// Special-token ids that a model's config.json stores in addition to the tokenizer's files.
struct TokenIds {
  int64_t bos = -1, eos = -1;  ///< -1 = none
};

/// Converts between dsv3's models and one Hugging Face architecture. The plugin's name is the
/// `model_type` in config.json. All methods are pure: they use no files and no state.
class Format : public Pluggable {
 public:
  ~Format() override;
  /// Returns the reasons why this format's architecture cannot express `model`; empty if it can.
  virtual std::vector<std::string> obstacles(const ModelDescription& model) const = 0;
  /// Returns config.json without the fields common to all formats (dtype, transformers_version).
  /// Requires that obstacles(model) is empty.
  virtual nlohmann::json config(const ModelDescription& model, const TokenIds& ids) const = 0;
  /// Returns the model described by a config.json from which the fields common to all formats were
  /// removed. Throws a dsv3::Error (ExitCode::usage) that lists every field that is unknown, is
  /// missing or has a value that the format cannot express.
  virtual ModelDescription describe(const nlohmann::json& config) const = 0;
  /// Returns all stored tensors. Without those marked `copy`, they contain each value of every
  /// parameter and buffer exactly once.
  virtual std::vector<TensorPlace> tensors(const ModelDescription& model) const = 0;
  /// Returns small config.json files for the conformance checks. Together, they use every option.
  virtual std::vector<nlohmann::json> examples() const = 0;
};

}  // namespace dsv3
