// Interface of formats: how one Hugging Face architecture describes and stores a model.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <dsv3/sdk/options.h>
#include <dsv3/sdk/pluggable.h>

namespace dsv3 {

/// A component of a described model. For a model to be written, `options` holds every option of the
/// plugin, including defaults; for a model that was read, the options that the format knows.
struct ComponentDescription {
  std::string plugin;
  OptionValues options;
  template <class T>
  const T& option(const std::string& key) const {
    return std::get<T>(options.at(key));
  }
  bool operator==(const ComponentDescription&) const = default;
};

/// A model in dsv3's terms: the section `model` of an experiment, layer by layer. MTP modules have
/// the components of the last layer.
struct ModelDescription {
  int64_t hidden = 0, layers = 0, vocab = 0;
  bool tied_head = false;
  double norm_eps = 1e-6;
  std::string norm_place = "pre";
  double init_std = 0.02;
  int64_t mtp_depth = 0;
  std::string mtp_concat = "embedding_first";  ///< columns of an MTP module's projection
  int64_t sequence = 0;  ///< T, tokens: the longest training sequence, or the context length
  std::vector<ComponentDescription> attention, feed_forward;  ///< one per layer
  ComponentDescription position;
  /// Shapes of all parameters and buffers by full name, for options that the plugin resolves
  /// (`hidden: auto`); empty in a model that a format read.
  std::map<std::string, std::vector<int64_t>> shapes;
};

/// Where a stored tensor's values are in the model: its row i is row `first_row + (rows.empty() ? i
/// : rows[i])` of `source` viewed as [rows, last dimension] (a vector is one row).
struct TensorPlace {
  std::string name;            ///< in the folder, e.g. model.layers.3.mlp.gate.weight
  std::vector<int64_t> shape;  ///< in the folder
  std::string source;          ///< full name of a parameter or buffer
  int64_t first_row = 0;
  std::vector<int64_t> rows;  ///< row order, if it differs from the source's; one entry per row
  bool keep_fp32 = false;     ///< stored in fp32 whatever the dtype of the rest
  /// A second copy of values that another tensor holds. On import it may be missing, and must not
  /// differ.
  bool copy = false;
  bool written = true;  ///< false: a copy that is read but never written
};

/// Special-token ids that a model's config.json stores in addition to the tokenizer.
struct TokenIds {
  int64_t bos = -1, eos = -1;  ///< -1 = none
};

/// A format's plugin name is the `model_type` of config.json. Its methods are pure: no files, no
/// state.
class Format : public Pluggable {
 public:
  ~Format() override;
  /// The reasons why this format's architecture cannot express `model`; empty if it can.
  virtual std::vector<std::string> obstacles(const ModelDescription& model) const = 0;
  /// config.json, without the fields common to all formats (dtype, transformers_version). `model`
  /// has no obstacles.
  virtual nlohmann::json config(const ModelDescription& model, const TokenIds& ids) const = 0;
  /// The model that a config.json, without the fields common to all formats, describes. Throws
  /// dsv3::Error (ExitCode::usage) that names every field that is unknown or missing or has a value
  /// that the format cannot express.
  virtual ModelDescription describe(const nlohmann::json& config) const = 0;
  /// All stored tensors. Except for copies, they hold each value of every parameter and buffer
  /// once.
  virtual std::vector<TensorPlace> tensors(const ModelDescription& model) const = 0;
  /// Small config.json files that together use every option, for the conformance suite.
  virtual std::vector<nlohmann::json> examples() const = 0;
};

}  // namespace dsv3
