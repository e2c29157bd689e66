#include "format/folder.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include <ATen/ATen.h>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

#include "format/description.h"
#include "format/sidecar.h"
#include "train/tensor_views.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

[[noreturn]] void damaged(const stdfs::path& file, const std::string& cause) {
  throw Error(file.string() + ": " + cause, ExitCode::checkpoint);
}

Json read_object(const stdfs::path& file) {
  try {
    const Json json = read_json(file);
    if (!json.is_object()) damaged(file, "is no JSON object");
    return json;
  } catch (const Error& error) {
    throw Error(error.what(), ExitCode::checkpoint);
  }
}

/// A few of the names, for errors.
std::string some_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text += (i ? ", " : "") + names[i];
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

at::ScalarType dtype_of(const safetensors::View& view, const std::string& name,
                        const stdfs::path& folder) {
  if (view.dtype == "F32") return at::kFloat;
  if (view.dtype == "BF16") return at::kBFloat16;
  if (view.dtype == "F16") return at::kHalf;
  damaged(folder, "tensor '" + name + "' is " + view.dtype +
                      "; weights are read in F32, BF16 and F16 (convert quantized ones first)");
}

/// fp32 copy [rows, columns] of a stored tensor.
at::Tensor values_of(const safetensors::View& view, const std::string& name,
                     const stdfs::path& folder) {
  const int64_t columns = view.shape.empty() ? 1 : view.shape.back();
  at::Tensor stored =
      at::empty({columns == 0 ? 0 : c10::multiply_integers(view.shape) / columns, columns},
                dtype_of(view, name, folder));
  if (view.size > 0) std::memcpy(stored.mutable_data_ptr(), view.bytes, view.size);
  return stored.to(at::kFloat);
}

/// The parameters and buffers of a model, put together from a folder's tensors.
class Assembly {
 public:
  Assembly(const stdfs::path& folder, const FolderTensors& files, const ModelDescription& model)
      : folder_(folder), files_(files) {
    for (const auto& [name, shape] : model.shapes) pieces_[name].shape = shape;
  }

  /// `places` must hold every value of the model once, and the folder nothing else.
  void fill(const std::vector<TensorPlace>& places) {
    // Before anything is allocated: config.json may promise more than there is.
    check_files(places);
    for (auto& [name, piece] : pieces_) {
      const int64_t columns = piece.shape.empty() ? 1 : piece.shape.back();
      piece.values =
          at::empty({c10::multiply_integers(piece.shape) / columns, columns}, at::kFloat);
      piece.filled = at::zeros({piece.values.size(0)}, at::kBool);
    }
    for (const TensorPlace& place : places)
      if (!place.copy) put(place);
    for (const auto& [name, piece] : pieces_)
      if (!piece.filled.all().item<bool>())
        throw Error("the format leaves rows of '" + name + "' without values", ExitCode::plugin);
    for (const TensorPlace& place : places)
      if (place.copy) compare(place);
  }

  /// Views under a checkpoint's names, and what they point into.
  void store(StoredModel& stored, const std::set<std::string>& buffers) {
    auto kept = std::make_shared<std::vector<at::Tensor>>();
    for (auto& [name, piece] : pieces_)
      kept->push_back(add_view(stored.tensors,
                               (buffers.contains(name) ? "buffer/" : "model/") + name,
                               piece.values.view(piece.shape)));
    stored.memory = kept;
  }

 private:
  struct Piece {
    std::vector<int64_t> shape;
    at::Tensor values;  // [rows, columns]
    at::Tensor filled;  // bool [rows]
  };

  /// All tensors are there, none else, in the shapes that `places` say.
  void check_files(const std::vector<TensorPlace>& places) const {
    std::vector<std::string> missing, unexpected;
    std::set<std::string> known;
    for (const TensorPlace& place : places) {
      known.insert(place.name);
      if (!place.copy && !files_.tensors().contains(place.name)) missing.push_back(place.name);
    }
    for (const auto& [name, view] : files_.tensors())
      if (!known.contains(name)) unexpected.push_back(name);
    if (!missing.empty()) damaged(folder_, "lacks the tensors " + some_of(missing));
    if (!unexpected.empty())
      damaged(folder_, "holds tensors that config.json's architecture does not have: " +
                           some_of(unexpected));
    for (const TensorPlace& place : places)
      if (!place.copy) view_of(place);
  }

  const safetensors::View& view_of(const TensorPlace& place) const {
    const safetensors::View& view = files_.tensors().at(place.name);
    if (view.shape != place.shape)
      damaged(folder_, "tensor '" + place.name + "' is " + c10::str(at::IntArrayRef(view.shape)) +
                           ", but config.json makes it " + c10::str(at::IntArrayRef(place.shape)));
    return view;
  }

  Piece& source_of(const TensorPlace& place) {
    const auto found = pieces_.find(place.source);
    if (found == pieces_.end())
      throw Error("the format stores '" + place.name + "' in '" + place.source +
                      "', which the model does not have",
                  ExitCode::plugin);
    return found->second;
  }

  void put(const TensorPlace& place) {
    const at::Tensor values = values_of(view_of(place), place.name, folder_);
    Piece& piece = source_of(place);
    const int64_t rows = values.size(0);
    if (values.size(1) != piece.values.size(1) || place.first_row + rows > piece.values.size(0))
      throw Error("the format's place of '" + place.name + "' is not inside '" + place.source +
                      "' " + c10::str(at::IntArrayRef(piece.shape)),
                  ExitCode::plugin);
    const at::Tensor index = row_index(place);
    const at::Tensor filled = index.defined() ? piece.filled.index_select(0, index)
                                              : piece.filled.narrow(0, place.first_row, rows);
    if (filled.any().item<bool>())
      throw Error(
          "the format fills rows of '" + place.source + "' twice, again from '" + place.name + "'",
          ExitCode::plugin);
    if (index.defined()) {
      piece.values.index_copy_(0, index, values);
      piece.filled.index_fill_(0, index, 1);
    } else {
      piece.values.narrow(0, place.first_row, rows).copy_(values);
      piece.filled.narrow(0, place.first_row, rows).fill_(true);
    }
  }

  /// A copy that says something else would be lost silently.
  void compare(const TensorPlace& place) {
    if (!files_.tensors().contains(place.name)) return;
    const at::Tensor values = values_of(view_of(place), place.name, folder_);
    Piece& piece = source_of(place);
    const at::Tensor index = row_index(place);
    const at::Tensor there = index.defined()
                                 ? piece.values.index_select(0, index)
                                 : piece.values.narrow(0, place.first_row, values.size(0));
    if (!there.equal(values))
      damaged(folder_, "tensor '" + place.name +
                           "' must repeat the values that the model shares, but they differ; dsv3 "
                           "has no parameter of its own for it");
  }

  const stdfs::path& folder_;
  const FolderTensors& files_;
  std::map<std::string, Piece> pieces_;
};

/// transformers says "one MTP module" by default, even in a folder that holds none.
bool lacks_mtp(const std::vector<TensorPlace>& places, int64_t layers,
               const std::map<std::string, safetensors::View>& tensors) {
  bool any = false, all_missing = true;
  for (const TensorPlace& place : places) {
    if (place.copy || !place.source.starts_with("layers.")) continue;
    if (std::stoll(place.source.substr(7)) < layers) continue;
    any = true;
    all_missing &= !tensors.contains(place.name);
  }
  return any && all_missing;
}

std::shared_ptr<Format> format_of(const Json& config, const stdfs::path& file, Plugins& plugins) {
  const std::string type = config.contains("model_type") && config["model_type"].is_string()
                               ? config["model_type"].get<std::string>()
                               : "";
  if (type.empty())
    throw Error(
        file.string() + " has no \"model_type\", so nobody can say which architecture it is",
        ExitCode::usage);
  ComponentSpec spec;
  spec.kind = Kind::format;
  spec.plugin = type;
  if (!plugins.find_entry(Kind::format, type)) {
    std::string known;
    for (const std::string& name : plugins.names(Kind::format))
      known += (known.empty() ? "" : ", ") + name;
    throw Error(file.string() + ": no format plugin reads the architecture '" + type +
                    "'; known: " + (known.empty() ? "none" : known),
                ExitCode::usage);
  }
  return make<Format>(plugins, spec);
}

/// The names and sizes of the model's parameters, and the names of its buffers.
std::set<std::string> add_shapes(ModelDescription& model, const Experiment& experiment,
                                 Plugins& plugins) try {
  std::set<std::string> buffers;
  const Model built(experiment, model.vocab, plugins, at::kMeta);
  for (const Parameter& parameter : built.store().parameters())
    model.shapes[parameter.name] = parameter.tensor.sizes().vec();
  for (const Buffer& buffer : built.store().buffers()) {
    model.shapes[buffer.name] = buffer.tensor.sizes().vec();
    buffers.insert(buffer.name);
  }
  return buffers;
} catch (const c10::Error& error) {
  throw Error(std::string("config.json's sizes make no model: ") + error.what_without_backtrace(),
              ExitCode::usage);
}

}  // namespace

Json without_common_fields(Json config) {
  static const std::set<std::string> kCommon{
      "architectures",        "model_type",    "dtype",        "torch_dtype",
      "transformers_version", "use_cache",     "bos_token_id", "eos_token_id",
      "pad_token_id",         "_name_or_path", "auto_map"};
  for (auto field = config.begin(); field != config.end();)
    field = kCommon.contains(field.key()) ? config.erase(field) : std::next(field);
  return config;
}

at::Tensor row_index(const TensorPlace& place) {
  if (place.rows.empty()) return {};
  return at::tensor(place.rows, at::kLong) + place.first_row;
}

FolderTensors::FolderTensors(const stdfs::path& folder) {
  const stdfs::path index = folder / "model.safetensors.index.json";
  if (!stdfs::exists(index)) {
    const stdfs::path single = folder / "model.safetensors";
    if (!stdfs::exists(single))
      damaged(folder,
              "has neither model.safetensors nor model.safetensors.index.json; other files of "
              "weights (pytorch_model.bin) are not read");
    add_file(single);
    return;
  }
  const Json map = read_object(index);
  if (!map.contains("weight_map") || !map["weight_map"].is_object())
    damaged(index, "has no \"weight_map\"");
  std::map<std::string, std::set<std::string>> by_file;
  for (const auto& [name, file] : map["weight_map"].items()) {
    const bool plain = file.is_string() && !file.get<std::string>().empty() &&
                       stdfs::path(file.get<std::string>()).filename() == file.get<std::string>();
    if (!plain) damaged(index, "the file of tensor '" + name + "' is no file name");
    by_file[file.get<std::string>()].insert(name);
  }
  for (const auto& [file, names] : by_file) {
    if (!stdfs::exists(folder / file))
      damaged(folder / file, "is missing; " + index.filename().string() + " names it for " +
                                 std::to_string(names.size()) + " tensors");
    add_file(folder / file);
    std::set<std::string> there;
    for (const auto& [name, view] : files_.back()->tensors()) there.insert(name);
    std::vector<std::string> differing;
    std::set_symmetric_difference(there.begin(), there.end(), names.begin(), names.end(),
                                  std::back_inserter(differing));
    if (!differing.empty())
      damaged(folder / file, "does not hold what " + index.filename().string() +
                                 " says; they differ in " + some_of(differing));
  }
}

void FolderTensors::add_file(const stdfs::path& file) {
  files_.push_back(std::make_unique<safetensors::File>(file));
  for (const auto& [name, view] : files_.back()->tensors())
    if (!tensors_.emplace(name, view).second)
      damaged(file, "holds tensor '" + name + "', which another file holds as well");
}

Experiment experiment_of(ModelDescription model, const std::string& name,
                         const stdfs::path& tokenizer, const Sidecar& sidecar, Plugins& plugins) {
  ExperimentRequest request;
  request.file = "config.json of " + name;
  request.forced_label = "dsv3.json of " + name;
  // From behind: what is said of some layers goes before what is said of the rest.
  for (auto each = sidecar.conventions.rbegin(); each != sidecar.conventions.rend(); ++each)
    if (each->first.starts_with("model.") && !set_by_description(model, each->first))
      request.forced.push_back(each->first + "=" + each->second);
    else
      set_convention(model, each->first, each->second, plugins);
  if (tokenizer.empty()) request.forced.push_back("data.tokenizer=null");
  request.text = imported_experiment(model, name, tokenizer.string());
  PluginCatalog catalog(plugins);
  return load_experiment(request, catalog);
}

StoredModel read_folder(const stdfs::path& folder, Plugins& plugins,
                        const stdfs::path& other_tokenizer) {
  const stdfs::path file = folder / "config.json";
  const Json config = read_object(file);
  const std::shared_ptr<Format> format = format_of(config, file, plugins);
  ModelDescription model;
  try {
    model = format->describe(without_common_fields(config));
  } catch (const Error& error) {
    throw Error(file.string() + ": " + error.what(), error.code());
  }
  const FolderTensors files(folder);
  if (model.mtp_depth > 0 && lacks_mtp(format->tensors(model), model.layers, files.tensors())) {
    log::info(folder.string() + ": config.json announces " + std::to_string(model.mtp_depth) +
              " MTP module(s), but there are no weights of any: read without");
    model.mtp_depth = 0;
  }
  const Sidecar sidecar = read_sidecar(folder);
  stdfs::path tokenizer = other_tokenizer;
  if (tokenizer.empty() && stdfs::exists(folder / "tokenizer.json"))
    tokenizer = folder / "tokenizer.json";
  if (!tokenizer.empty()) tokenizer = stdfs::absolute(tokenizer);
  const Experiment experiment =
      experiment_of(model, stdfs::absolute(folder / "").parent_path().filename().string(),
                    tokenizer, sidecar, plugins);
  if (const std::string other =
          sidecar.conventions.empty()
              ? ""
              : convention_differences(sidecar.conventions, experiment.conventions);
      !other.empty())
    throw Error(
        folder.string() + " was made under conventions that this dsv3 cannot express:" + other,
        ExitCode::checkpoint);

  StoredModel stored;
  stored.path = folder;
  stored.config = experiment.resolved;
  stored.conventions = experiment.conventions;
  stored.tokenizers = sidecar.tokenizers;
  stored.step = sidecar.step;
  for (const auto& [name, view] : files.tensors()) stored.dtypes[name] = view.dtype;
  const std::set<std::string> buffers = add_shapes(model, experiment, plugins);
  Assembly assembly(folder, files, model);
  assembly.fill(format->tensors(model));
  assembly.store(stored, buffers);
  return stored;
}

}  // namespace dsv3
