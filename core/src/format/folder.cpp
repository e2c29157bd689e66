#include "format/folder.h"

#include <cstring>

#include <dsv3/sdk/log.h>

#include "call/call.h"
#include "checkpoint/tensor_views.h"
#include "format/description.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

[[noreturn]] void damaged(const stdfs::path& file, const std::string& cause) {
  throw Error(file.string() + ": " + cause, ExitCode::checkpoint);
}

Json read_object(const stdfs::path& file) {
  try {
    const Json json = read_json(file);
    if (!json.is_object()) damaged(file, "is not a JSON object");
    return json;
  } catch (const Error& error) {
    throw Error(error.what(), ExitCode::checkpoint);
  }
}

/// Lists the first few names and the number of remaining ones.
std::string name_list(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text += (i ? ", " : "") + names[i];
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

at::ScalarType dtype_of(const safetensors::View& view, const std::string& name,
                        const stdfs::path& folder) {
  const auto dtype = dtype_from_name(view.dtype);
  if (dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf) return *dtype;
  damaged(folder, "tensor '" + name + "' is " + view.dtype +
                      ", but weights must be F32, BF16 or F16 (convert quantized tensors first)");
}

/// Returns a stored tensor as an fp32 copy [rows, columns].
at::Tensor values_of(const safetensors::View& view, const std::string& name,
                     const stdfs::path& folder) {
  const int64_t columns = view.shape.empty() ? 1 : view.shape.back();
  at::Tensor stored =
      at::empty({columns == 0 ? 0 : c10::multiply_integers(view.shape) / columns, columns},
                dtype_of(view, name, folder));
  if (view.size > 0) std::memcpy(stored.mutable_data_ptr(), view.bytes, view.size);
  return stored.to(at::kFloat);
}

/// Assembles a model's parameters and buffers from a folder's tensors.
class Assembly {
 public:
  Assembly(const stdfs::path& folder, const FolderTensors& files, const ModelDescription& model)
      : folder_(folder), files_(files) {
    for (const auto& [name, shape] : model.shapes) pieces_[name].shape = shape;
  }

  /// `places` must cover every value in the model exactly once, and the folder must not contain any
  /// other tensors.
  void fill(const std::vector<TensorPlace>& places) {
    // Check before allocating, because config.json may describe a far larger model.
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
        throw Error("the format assigns no values to some rows of '" + name + "'",
                    ExitCode::plugin);
    for (const TensorPlace& place : places)
      if (place.copy) compare(place);
  }

  /// Adds the tensors to `stored` under the same names as in a checkpoint, and keeps their memory
  /// alive there.
  void store(StoredModel& stored, const std::set<std::string>& buffers) {
    auto hosts = std::make_shared<std::vector<at::Tensor>>();
    std::map<std::string, safetensors::View> views;
    for (auto& [name, piece] : pieces_)
      hosts->push_back(add_view(views, (buffers.contains(name) ? "buffer/" : "model/") + name,
                                piece.values.view(piece.shape)));
    stored.tensors = StoredTensors(views, hosts);
  }

 private:
  struct Piece {
    std::vector<int64_t> shape;
    at::Tensor values;  // [rows, columns]
    at::Tensor filled;  // bool [rows]
  };

  /// Requires the folder to contain the tensors in `places` with the right shapes, and no others.
  /// Only tensors that copy another one may be missing.
  void check_files(const std::vector<TensorPlace>& places) const {
    std::vector<std::string> missing, unexpected;
    std::set<std::string> known;
    for (const TensorPlace& place : places) {
      known.insert(place.name);
      if (!place.copy && !files_.tensors().contains(place.name)) missing.push_back(place.name);
    }
    for (const auto& [name, view] : files_.tensors())
      if (!known.contains(name)) unexpected.push_back(name);
    if (!missing.empty()) damaged(folder_, "lacks the tensors " + name_list(missing));
    if (!unexpected.empty())
      damaged(folder_, "has tensors that are not part of config.json's architecture: " +
                           name_list(unexpected));
    for (const TensorPlace& place : places)
      if (!place.copy) view_of(place);
  }

  const safetensors::View& view_of(const TensorPlace& place) const {
    const safetensors::View& view = files_.tensors().at(place.name);
    if (view.shape != place.shape)
      damaged(folder_, "tensor '" + place.name + "' has shape " +
                           c10::str(at::IntArrayRef(view.shape)) + ", but config.json requires " +
                           c10::str(at::IntArrayRef(place.shape)));
    return view;
  }

  Piece& source_of(const TensorPlace& place) {
    const auto found = pieces_.find(place.source);
    if (found == pieces_.end())
      throw Error("the format maps '" + place.name + "' to '" + place.source +
                      "', which the model does not have",
                  ExitCode::plugin);
    return found->second;
  }

  void put(const TensorPlace& place) {
    const at::Tensor values = values_of(view_of(place), place.name, folder_);
    Piece& piece = source_of(place);
    const int64_t rows = values.size(0);
    if (values.size(1) != piece.values.size(1) || place.first_row + rows > piece.values.size(0))
      throw Error("the format maps '" + place.name + "' to rows outside '" + place.source + "' " +
                      c10::str(at::IntArrayRef(piece.shape)),
                  ExitCode::plugin);
    if (select_rows(piece.filled, place, rows).any().item<bool>())
      throw Error("the format fills rows of '" + place.source + "' twice, the second time from '" +
                      place.name + "'",
                  ExitCode::plugin);
    if (const at::Tensor index = row_index(place); index.defined()) {
      piece.values.index_copy_(0, index, values);
      piece.filled.index_fill_(0, index, 1);
    } else {
      piece.values.narrow(0, place.first_row, rows).copy_(values);
      piece.filled.narrow(0, place.first_row, rows).fill_(true);
    }
  }

  /// Rejects a stored copy that differs from its original, because importing the model would
  /// silently discard the copy.
  void compare(const TensorPlace& place) {
    if (!files_.tensors().contains(place.name)) return;
    const at::Tensor values = values_of(view_of(place), place.name, folder_);
    if (!select_rows(source_of(place).values, place, values.size(0)).equal(values))
      damaged(folder_, "tensor '" + place.name + "' differs from '" + place.source +
                           "', which must have the same values: dsv3 has only one parameter for "
                           "both");
  }

  const stdfs::path& folder_;
  const FolderTensors& files_;
  std::map<std::string, Piece> pieces_;
};

/// Whether the folder lacks the weights of all MTP modules that config.json declares. By default,
/// the Transformers library declares one MTP module even in a folder that has none.
bool lacks_mtp(const std::vector<TensorPlace>& places, int64_t layers,
               const std::map<std::string, safetensors::View>& tensors) {
  bool any = false;
  for (const TensorPlace& place : places) {
    if (place.copy || !place.source.starts_with("layers.")) continue;
    if (std::stoll(place.source.substr(7)) < layers) continue;
    if (tensors.contains(place.name)) return false;
    any = true;
  }
  return any;
}

std::shared_ptr<Format> format_of(const Json& config, const stdfs::path& file, Plugins& plugins) {
  const auto found = config.find("model_type");
  if (found != config.end() && !found->is_string())
    throw Error(file.string() + ": \"model_type\" must be a string such as \"deepseek_v3\", not " +
                    (found->is_null() ? "null" : std::string("of type ") + found->type_name()),
                ExitCode::usage);
  if (found == config.end() || *found == "")
    throw Error(file.string() + " has no \"model_type\", so its architecture cannot be determined",
                ExitCode::usage);
  const std::string type = *found;
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

ExperimentRequest request_of(ModelDescription model, const std::string& name,
                             const stdfs::path& tokenizer, const Sidecar& sidecar,
                             Plugins& plugins) {
  std::vector<Setting> conventions;
  // Iterate in reverse, so that conventions for some layers come before those for all other layers.
  for (auto entry = sidecar.conventions.rbegin(); entry != sidecar.conventions.rend(); ++entry)
    if (entry->first.starts_with("model.") && !set_by_description(model, entry->first))
      conventions.push_back({entry->first, entry->second, "dsv3.json of " + name});
    else
      set_convention(model, entry->first, entry->second, plugins);
  ExperimentRequest request = imported_experiment(model, name, tokenizer);
  request.settings.insert(request.settings.end(), conventions.begin(), conventions.end());
  return request;
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

Sidecar read_sidecar(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / kSidecarName;
  if (!std::filesystem::exists(file)) return {};
  const Json json = read_object(file);
  try {
    if (json.at("dsv3") != 1) damaged(file, "has a format that this dsv3 does not support");
    const int64_t step = json.at("step").get<int64_t>();
    if (step < 0) damaged(file, "'step' is negative");
    return {json.at("conventions").get<std::map<std::string, std::string>>(),
            json.at("tokenizers").get<std::set<std::string>>(), step};
  } catch (const Json::exception& error) {
    damaged(file, std::string(error.what()) + "; remove it to read the folder without it");
  }
}

std::string sidecar_text(const Sidecar& sidecar) {
  const Json json{{"dsv3", 1},
                  {"conventions", sidecar.conventions},
                  {"tokenizers", sidecar.tokenizers},
                  {"step", sidecar.step}};
  return json.dump(2) + "\n";
}

at::Tensor row_index(const TensorPlace& place) {
  if (place.rows.empty()) return {};
  return at::tensor(place.rows, at::kLong) + place.first_row;
}

at::Tensor select_rows(const at::Tensor& source, const TensorPlace& place, int64_t count) {
  const at::Tensor index = row_index(place);
  return index.defined() ? source.index_select(0, index) : source.narrow(0, place.first_row, count);
}

FolderTensors::FolderTensors(const stdfs::path& folder) {
  const stdfs::path index = folder / "model.safetensors.index.json";
  if (!stdfs::exists(index)) {
    const stdfs::path single = folder / "model.safetensors";
    if (!stdfs::exists(single))
      damaged(folder,
              "has neither model.safetensors nor model.safetensors.index.json; dsv3 does not read "
              "other weights files (pytorch_model.bin)");
    add_file(single);
    return;
  }
  const Json map = read_object(index);
  if (!map.contains("weight_map") || !map["weight_map"].is_object())
    damaged(index, "has no \"weight_map\"");
  std::map<std::string, std::set<std::string>> by_file;
  for (const auto& [name, file] : map["weight_map"].items()) {
    const std::string plain = file.is_string() ? file.get<std::string>() : "";
    if (plain.empty() || stdfs::path(plain).filename() != plain)
      damaged(index, "the file for tensor '" + name + "' must be a plain file name");
    by_file[plain].insert(name);
  }
  for (const auto& [file, names] : by_file) {
    if (!stdfs::exists(folder / file))
      damaged(folder / file, "is missing; " + index.filename().string() + " lists it for " +
                                 std::to_string(names.size()) + " tensors");
    add_file(folder / file);
    std::set<std::string> stored;
    for (const auto& [name, view] : files_.back()->tensors()) stored.insert(name);
    std::vector<std::string> differing;
    std::set_symmetric_difference(stored.begin(), stored.end(), names.begin(), names.end(),
                                  std::back_inserter(differing));
    if (!differing.empty())
      damaged(folder / file, "does not match " + index.filename().string() +
                                 ": only one of the two lists " + name_list(differing));
  }
}

void FolderTensors::add_file(const stdfs::path& file) {
  files_.push_back(std::make_unique<safetensors::File>(file));
  for (const auto& [name, view] : files_.back()->tensors())
    if (!tensors_.emplace(name, view).second)
      damaged(file, "has tensor '" + name + "', which another file also has");
}

Experiment experiment_of(const ModelDescription& model, const std::string& name,
                         const stdfs::path& tokenizer, const Sidecar& sidecar, Plugins& plugins) {
  return load_experiment(request_of(model, name, tokenizer, sidecar, plugins), plugins);
}

StoredModel read_folder(const stdfs::path& folder, Plugins& plugins,
                        const stdfs::path& tokenizer_path) {
  const stdfs::path file = folder / "config.json";
  const Json config = read_object(file);
  const std::shared_ptr<Format> format = format_of(config, file, plugins);
  ModelDescription model = call(*format, "describe", [&](const Format& f) {
    try {
      return f.describe(without_common_fields(config));
    } catch (const Error& error) {  // this is an error in the file, not in the plugin
      throw NamedError(file.string() + ": " + error.what(), error.code());
    }
  });
  const Sidecar sidecar = read_sidecar(folder);
  for (const auto& [key, value] : sidecar.conventions)
    if (const std::string problem = convention_problem(key, value, model, plugins);
        !problem.empty())
      damaged(folder / kSidecarName, problem + "; remove it to read the folder without it");
  stdfs::path tokenizer = tokenizer_path;
  if (tokenizer.empty() && stdfs::exists(folder / "tokenizer.json"))
    tokenizer = folder / "tokenizer.json";
  if (!tokenizer.empty()) tokenizer = stdfs::absolute(tokenizer);
  const std::string name = stdfs::absolute(folder / "").parent_path().filename().string();
  // Checks the sizes before the format lists the tensors, because config.json may describe an
  // absurd number of them.
  experiment_of(model, name, tokenizer, sidecar, plugins);
  const FolderTensors files(folder);
  if (model.mtp_depth > 0 &&
      lacks_mtp(call(*format, "tensors", &Format::tensors, model), model.layers, files.tensors())) {
    log::info(
        folder.string() + ": config.json declares " + std::to_string(model.mtp_depth) +
        " MTP module(s), but the folder has no weights for them; reading the model without them");
    model.mtp_depth = 0;
  }
  StoredModel stored;
  stored.source = request_of(model, name, tokenizer, sidecar, plugins);
  const Experiment& experiment = stored.experiment.emplace(stored.load(plugins));
  const std::string differences =
      sidecar.conventions.empty()
          ? ""
          : convention_differences(sidecar.conventions, experiment.conventions);
  if (!differences.empty())
    throw Error(folder.string() + " has conventions that this dsv3 cannot express:" + differences,
                ExitCode::checkpoint);

  stored.path = folder;
  stored.conventions = experiment.conventions;
  stored.tokenizers = sidecar.tokenizers;
  stored.step = sidecar.step;
  for (const auto& [name, view] : files.tensors()) stored.dtypes[name] = view.dtype;
  std::set<std::string> buffers;
  try {
    buffers = add_shapes(model, experiment, plugins);
  } catch (const c10::Error& error) {
    throw Error(
        std::string("config.json's sizes are not a valid model: ") + error.what_without_backtrace(),
        ExitCode::usage);
  }
  Assembly assembly(folder, files, model);
  assembly.fill(call(*format, "tensors", &Format::tensors, model));
  assembly.store(stored, buffers);
  return stored;
}

}  // namespace dsv3
