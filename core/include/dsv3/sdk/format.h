// Interface of formats: how one architecture of Hugging Face describes and stores a model.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <dsv3/sdk/options.h>

namespace dsv3 {

/// A component of a described model. Of a model to be written, `options` holds every option of the
/// plugin, defaults included; of one that was read, those that the format knows.
struct ComponentDescription {
  std::string plugin;
  OptionValues options;
  bool operator==(const ComponentDescription&) const = default;
};

/// A model in dsv3's terms: the section `model` of an experiment, layer by layer. MTP modules are
/// built as the last layer is.
struct ModelDescription {
  int64_t hidden = 0, layers = 0, vocab = 0;
  bool tied_head = false;
  double norm_eps = 1e-6;
  std::string norm_place = "pre";
  double init_std = 0.02;
  int64_t mtp_depth = 0;
  std::string mtp_concat = "embedding_first";  ///< columns of an MTP module's projection
  int64_t sequence = 0;  ///< T, tokens: the longest sequence of training, or of the context
  std::vector<ComponentDescription> attention, feed_forward;  ///< one a layer
  ComponentDescription position;
  /// Of every parameter and buffer by its full name, for what options leave to the plugin
  /// (`hidden: auto`); empty in a model that a format read.
  std::map<std::string, std::vector<int64_t>> shapes;
};

/// Where a stored tensor's values are in the model: row i of it is row `first_row +
/// (rows.empty() ? i : rows[i])` of `source` seen as [rows, last dimension] (a vector is a row).
struct TensorPlace {
  std::string name;            ///< in the folder, e.g. model.layers.3.mlp.gate.weight
  std::vector<int64_t> shape;  ///< in the folder
  std::string source;          ///< full name of a parameter or buffer
  int64_t first_row = 0;
  std::vector<int64_t> rows;  ///< an order other than the source's; as many as the tensor has
  bool keep_fp32 = false;     ///< stored in fp32 whatever the rest is in
  /// A second copy of values that another place holds. When read, it may be left out, and must not
  /// differ.
  bool copy = false;
  bool written = true;  ///< false: a copy that is only read
};

/// Token ids that a model's configuration repeats.
struct TokenIds {
  int64_t bos = -1, eos = -1;  ///< -1 = none
};

/// A format's plugin name is the `model_type` of config.json. Pure: no files, no state.
class Format {
 public:
  virtual ~Format();
  /// What keeps `model` from being an architecture of this format, a reason each; empty: nothing
  /// does.
  virtual std::vector<std::string> obstacles(const ModelDescription& model) const = 0;
  /// config.json, without the fields that are the same for all formats (dtype,
  /// transformers_version). `model` has no obstacles.
  virtual nlohmann::json config(const ModelDescription& model, const TokenIds& ids) const = 0;
  /// The model that a config.json describes. Throws dsv3::Error (ExitCode::usage) that names every
  /// field that is unknown, missing or has a value the format cannot express. Fields the same for
  /// all formats are not in it.
  virtual ModelDescription describe(const nlohmann::json& config) const = 0;
  /// All stored tensors; together they hold each value of every parameter and buffer once, copies
  /// aside.
  virtual std::vector<TensorPlace> tensors(const ModelDescription& model) const = 0;
  /// Small config.json texts that together use every option: what the conformance suite reads and
  /// writes.
  virtual std::vector<nlohmann::json> examples() const = 0;
};

}  // namespace dsv3
