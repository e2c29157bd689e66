// Exports models to Hugging Face folders and imports models from them.
#include <fmt/format.h>

#include <dsv3/runtime/convert.h>

#include "call/checked.h"
#include "checkpoint/tensor_views.h"
#include "format/description.h"
#include "format/folder.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

/// Returns the requested format, or the first one that can express the model, and its name. Throws
/// an error that lists each format's reasons if none can.
std::pair<std::string, std::shared_ptr<Format>> choose_format(const std::string& requested,
                                                              const ModelDescription& model,
                                                              Plugins& plugins) {
  std::vector<std::string> names = plugins.names(Kind::format);
  if (!requested.empty()) names = {requested};
  std::string reasons;
  for (const std::string& name : names) {
    ComponentSpec spec;
    spec.kind = Kind::format;
    spec.plugin = name;
    spec.origin.source = requested.empty() ? "" : "--format";
    const std::shared_ptr<Format> format = make<Format>(plugins, spec);
    const std::vector<std::string> obstacles =
        call(*format, "obstacles", &Format::obstacles, model);
    if (obstacles.empty()) return {name, format};
    reasons += "\n  " + name + ":";
    for (const std::string& obstacle : obstacles) reasons += "\n    " + obstacle;
  }
  throw Error("no format can express this model:" +
                  (reasons.empty() ? " no format plugin was found" : reasons),
              ExitCode::usage);
}

/// Returns the digest of the tokenizer in `folder`, or "" if it cannot be read.
std::string digest_in(const ModelDescription& described, const stdfs::path& folder,
                      Plugins& plugins) {
  const stdfs::path file = stdfs::absolute(folder / "tokenizer.json");
  if (!stdfs::exists(file)) return "";
  try {
    const ComponentSpec spec = experiment_of(described, "tokenizer", file, {}, plugins).tokenizer;
    return make<Tokenizer>(plugins, spec, TokenizerContext{})->digest();
  } catch (const Error&) {
    return "";
  }
}

/// Creates the sidecar (dsv3.json) for the exported folder. It lists the model's conventions,
/// except those that the format changed, such as the order of rotated features. `folder` must
/// already contain the tokenizer.
Sidecar sidecar_of(const LoadedModel& loaded, const Format& format, const Json& config,
                   const stdfs::path& folder, Plugins& plugins) {
  const ModelDescription described = call(format, "describe", &Format::describe, config);
  Sidecar sidecar;
  for (const auto& [key, value] : loaded.experiment.conventions)
    if (!set_by_description(described, key)) sidecar.conventions[key] = value;
  sidecar.conventions =
      experiment_of(described, loaded.experiment.name, {}, sidecar, plugins).conventions;
  if (loaded.tokenizer) sidecar.tokenizers.insert(loaded.tokenizer->digest());
  if (const std::string digest = digest_in(described, folder, plugins); !digest.empty())
    sidecar.tokenizers.insert(digest);
  sidecar.step = loaded.stored.step;
  return sidecar;
}

/// A model's parameters and buffers by name, as matrices [rows, columns].
using Weights = std::map<std::string, at::Tensor>;

Weights weights_of(const Model& model) {
  Weights weights;
  const auto add = [&](const auto& value) {
    const int64_t columns = value.tensor.dim() == 0 ? 1 : value.tensor.size(-1);
    weights[value.name] = value.tensor.detach().cpu().reshape({-1, columns});
  };
  for (const Parameter& parameter : model.store().parameters()) add(parameter);
  for (const Buffer& buffer : model.store().buffers()) add(buffer);
  return weights;
}

at::Tensor tensor_of(const Weights& weights, const TensorPlace& place, at::ScalarType dtype) {
  const auto found = weights.find(place.source);
  if (found == weights.end())
    throw Error("the format stores '" + place.source + "', which the model does not have",
                ExitCode::plugin);
  const int64_t columns = found->second.size(1);
  const int64_t count = columns == 0 ? 0 : c10::multiply_integers(place.shape) / columns;
  return select_rows(found->second, place, count).reshape(place.shape).to(dtype).contiguous();
}

int64_t size_of(const TensorPlace& place, at::ScalarType dtype) {
  return c10::multiply_integers(place.shape) * int64_t(c10::elementSize(dtype));
}

class FolderWriter {
 public:
  FolderWriter(const ExportRequest& request, const LoadedModel& loaded) : request_(request) {
    if (request.dtype == "bf16") default_ = at::kBFloat16;
    if (request.dtype != "auto") return;
    for (const auto& [name, dtype] : loaded.stored.dtypes)
      dtypes_[name] = dtype_from_name(dtype).value_or(at::kFloat);
    // Tensors that the imported model did not have (a copy or an MTP module) get the most common
    // dtype.
    std::map<at::ScalarType, int> votes;
    for (const auto& [name, dtype] : dtypes_) ++votes[dtype];
    for (const auto& [dtype, count] : votes)
      if (count > votes[default_]) default_ = dtype;
  }

  at::ScalarType default_dtype() const { return default_; }

  void write(const stdfs::path& folder, std::vector<TensorPlace> places, const Model& model,
             ExportResult& result) {
    std::sort(places.begin(), places.end(),
              [](const TensorPlace& a, const TensorPlace& b) { return a.name < b.name; });
    const Weights weights = weights_of(model);
    const auto shards = split(places);
    Json map = Json::object();
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string file = shards.size() == 1 ? "model.safetensors"
                                                  : fmt::format("model-{:05}-of-{:05}.safetensors",
                                                                i + 1, shards.size());
      std::map<std::string, safetensors::View> views;
      std::vector<at::Tensor> hosts;
      for (const TensorPlace* place : shards[i]) {
        const at::ScalarType dtype = dtype_of(*place);
        hosts.push_back(add_view(views, place->name, tensor_of(weights, *place, dtype)));
        map[place->name] = file;
        result.bytes += size_of(*place, dtype);
      }
      safetensors::write(folder / file, views, {{"format", "pt"}});
      result.tensors += std::ssize(views);
    }
    result.files = int64_t(shards.size());
    if (shards.size() > 1)
      fs::write_atomically(
          folder / "model.safetensors.index.json",
          Json{{"metadata", {{"total_size", result.bytes}}}, {"weight_map", map}}.dump(2) + "\n");
  }

 private:
  at::ScalarType dtype_of(const TensorPlace& place) const {
    if (const auto found = dtypes_.find(place.name); found != dtypes_.end()) return found->second;
    return place.keep_fp32 ? at::kFloat : default_;
  }

  std::vector<std::vector<const TensorPlace*>> split(const std::vector<TensorPlace>& places) const {
    std::vector<std::vector<const TensorPlace*>> shards(1);
    int64_t used = 0;
    for (const TensorPlace& place : places) {
      if (!place.written) continue;
      const int64_t size = size_of(place, dtype_of(place));
      if (request_.shard_bytes > 0 && used > 0 && used + size > request_.shard_bytes) {
        shards.emplace_back();
        used = 0;
      }
      shards.back().push_back(&place);
      used += size;
    }
    return shards;
  }

  const ExportRequest& request_;
  std::map<std::string, at::ScalarType> dtypes_;  // keyed by the stored tensor's name
  at::ScalarType default_ = at::kFloat;
};

std::string dtype_word(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? "bfloat16" : dtype == at::kHalf ? "float16" : "float32";
}

void write_texts(const stdfs::path& folder, const LoadedModel& loaded, Json config,
                 const std::string& dtype, const TokenIds& ids) {
  config["dtype"] = dtype;
  config["torch_dtype"] = dtype;  // name of this field before Transformers 5
  fs::write_atomically(folder / "config.json", config.dump(2) + "\n");
  Json generation = Json::object();
  if (ids.bos >= 0) generation["bos_token_id"] = ids.bos;
  if (ids.eos >= 0) generation["eos_token_id"] = ids.eos;
  fs::write_atomically(folder / "generation_config.json", generation.dump(2) + "\n");
  if (!loaded.tokenizer) return;
  for (const auto& [name, text] : loaded.tokenizer->files())
    fs::write_atomically(folder / name, text);
}

std::vector<std::string> notes_of(const LoadedModel& loaded, const ModelDescription& model) {
  std::vector<std::string> notes;
  if (!loaded.tokenizer)
    notes.push_back("the model has no tokenizer, so the folder has none either");
  else if (loaded.tokenizer->files().empty())
    notes.push_back(
        "the tokenizer cannot be exported in a form that Hugging Face's libraries can read, so the "
        "folder has none");
  if (model.mtp_depth > 0)
    notes.push_back(
        "the folder has MTP modules; the Transformers library reports their weights as unexpected "
        "keys unless it uses these modules (--no-mtp omits them)");
  return notes;
}

/// Returns the folder's tokenizer. If the folder has none or dsv3 cannot read it, adds a note and
/// returns null.
std::shared_ptr<const Tokenizer> tokenizer_of(const Experiment& experiment, Plugins& plugins,
                                              std::vector<std::string>& notes) {
  if (experiment.tokenizer.plugin.empty()) {
    notes.emplace_back(
        "the folder has no tokenizer.json: pass one with --tokenizer to commands that process "
        "text");
    return nullptr;
  }
  try {
    return make<Tokenizer>(plugins, experiment.tokenizer, TokenizerContext{});
  } catch (const Error& error) {
    notes.emplace_back(std::string("imported without its tokenizer: ") + error.what());
    return nullptr;
  }
}

}  // namespace

ExportResult export_model(const ExportRequest& request, Plugins& plugins) {
  std::error_code ignored;
  if (stdfs::exists(request.folder, ignored) && !stdfs::is_empty(request.folder, ignored))
    throw Error(request.folder.string() + " already exists; choose another folder",
                ExitCode::usage);
  const LoadedModel loaded = load_model(
      {.path = request.model, .device = "cpu", .precision = "fp32", .tokenizer = request.tokenizer},
      plugins);
  ModelDescription model = describe_model(loaded.experiment, loaded.model->vocab(), plugins);
  if (!request.mtp) model.mtp_depth = 0;
  const auto [name, format] = choose_format(request.format, model, plugins);
  TokenIds ids;
  if (loaded.tokenizer) ids.eos = loaded.tokenizer->eos_id();
  const Json config = checked::config(*format, model, ids);
  ExportResult result{.format = name, .notes = notes_of(loaded, model)};
  FolderWriter writer(request, loaded);
  const stdfs::path temporary = fs::temporary_name(request.folder);
  try {
    fs::make_folders(temporary);
    writer.write(temporary, call(*format, "tensors", &Format::tensors, model), *loaded.model,
                 result);
    write_texts(temporary, loaded, config, dtype_word(writer.default_dtype()), ids);
    const Sidecar sidecar =
        sidecar_of(loaded, *format, without_common_fields(config), temporary, plugins);
    fs::write_atomically(temporary / kSidecarName, sidecar_text(sidecar));
    fs::sync_folder(temporary);
    fs::rename(temporary, request.folder);
  } catch (...) {
    stdfs::remove_all(temporary, ignored);
    throw;
  }
  return result;
}

std::vector<std::string> import_model(const stdfs::path& folder, const stdfs::path& checkpoint,
                                      Plugins& plugins) {
  std::error_code ignored;
  if (stdfs::exists(checkpoint, ignored))
    throw Error(checkpoint.string() + " already exists; choose another folder", ExitCode::usage);
  if (!stdfs::exists(folder / "config.json", ignored))
    throw Error(folder.string() + (stdfs::exists(folder, ignored)
                                       ? " is not a Hugging Face folder: it has no config.json"
                                       : " does not exist"),
                ExitCode::checkpoint);
  const StoredModel stored = read_folder(folder, plugins);
  std::vector<std::string> notes;
  Experiment experiment = *stored.experiment;
  CheckpointContent content{.step = stored.step};
  for (const std::string& tensor : stored.tensors.names())
    add_whole(content, tensor, stored.tensors.whole(tensor));
  std::set<std::string> tokenizers = stored.tokenizers;
  if (const auto tokenizer = tokenizer_of(experiment, plugins, notes)) {
    content.files["tokenizer.json"] = fs::read(folder / "tokenizer.json");
    const std::string file = stdfs::absolute(checkpoint / "tokenizer.json").string();
    experiment.tokenizer.options["file"] = file;
    experiment.resolved.set("data.tokenizer.file", file, {"dsv3 import"});
    if (!fits(*tokenizer, stored))
      throw Error((folder / "tokenizer.json").string() +
                      " is not the tokenizer that the model was exported with (dsv3.json)",
                  ExitCode::checkpoint);
    tokenizers.insert(tokenizer->digest());
  } else {
    experiment.tokenizer = {};
    std::erase_if(experiment.resolved.values, [](const ResolvedValue& value) {
      return value.path.starts_with("data.tokenizer.");
    });
  }
  const std::string config = experiment.resolved.yaml();
  content.files["experiment.yaml"] = config;
  content.state = {{"config", config},
                   {"conventions", experiment.conventions},
                   {"tokenizer", tokenizers},
                   {"dtypes", stored.dtypes}};
  require_finite(content.tensors, folder.string(), ExitCode::checkpoint);
  write_checkpoint(checkpoint, content);
  return notes;
}

}  // namespace dsv3
