// format/@NAME@: imports and exports Hugging Face folders with "model_type": "@NAME@", a small
// architecture with plain multi-head attention and dense gated layers.
#include <dsv3/sdk/config_reader.h>
#include <dsv3/sdk/format.h>
#include <dsv3/sdk/plugin.h>

namespace {

using dsv3::ComponentDescription;
using dsv3::ModelDescription;
using dsv3::TensorPlace;
using Json = nlohmann::json;

int64_t integer(const ComponentDescription& component, const std::string& key) {
  return std::get<int64_t>(component.options.at(key));
}

/// Inner width of the feed-forward layer in block `layer`. For `hidden: auto`, it comes from the
/// parameter's shape.
int64_t inner_width(const ModelDescription& model, size_t layer) {
  const int64_t width = integer(model.feed_forward[layer], "hidden");
  if (width > 0) return width;
  return model.shapes.at("layers." + std::to_string(layer) + ".feed_forward.gate_up.weight")[0] / 2;
}

class Architecture final : public dsv3::Format {
 public:
  using Options = dsv3::NoOptions;
  explicit Architecture(const Options&) {}

  // Must list everything that the architecture cannot express. Otherwise, the export would write a
  // different model.
  std::vector<std::string> obstacles(const ModelDescription& model) const override {
    std::vector<std::string> obstacles;
    const auto require = [&](bool condition, const std::string& text) {
      if (!condition) obstacles.push_back(text);
    };
    for (size_t layer = 0; layer < model.attention.size(); ++layer) {
      const ComponentDescription& attention = model.attention[layer];
      if (attention.plugin != "mha" || model.feed_forward[layer].plugin != "swiglu")
        return {"layer " + std::to_string(layer) + " uses " + attention.plugin + " and " +
                model.feed_forward[layer].plugin +
                ", but the architecture supports only mha and swiglu"};
      const int64_t heads = integer(attention, "heads"), kv_heads = integer(attention, "kv_heads"),
                    head_dim = integer(attention, "head_dim");
      require(heads == integer(model.attention[0], "heads") &&
                  inner_width(model, layer) == inner_width(model, 0),
              "layers have different sizes");
      require(kv_heads == 0 || kv_heads == heads, "attention mha: kv_heads differs from heads");
      require(head_dim == 0 || head_dim * heads == model.hidden,
              "attention mha: head_dim is not auto");
      require(!std::get<bool>(attention.options.at("qk_norm")), "attention mha: qk_norm is on");
      require(std::get<double>(attention.options.at("rotary_share")) == 1,
              "attention mha: rotary_share is not 1");
      if (!obstacles.empty()) return obstacles;
    }
    require(model.position.plugin == "rope", "model.position is not rope");
    require(model.norm_place == "pre", "model.norm.place is not pre");
    require(!model.tied_head, "the head is tied to the embedding");
    require(model.mtp_depth == 0, "the model has MTP modules (--no-mtp omits them)");
    return obstacles;
  }

  Json config(const ModelDescription& model, const dsv3::TokenIds& ids) const override {
    return {{"architectures", {"@NAME@"}},
            {"model_type", "@NAME@"},
            {"vocabulary", model.vocab},
            {"width", model.hidden},
            {"depth", model.layers},
            {"heads", integer(model.attention[0], "heads")},
            {"inner_width", inner_width(model, 0)},
            {"rope_base", std::get<double>(model.position.options.at("theta"))},
            {"rope_pairs", std::get<std::string>(model.position.options.at("layout"))},
            {"norm_eps", model.norm_eps},
            {"init_std", model.init_std},
            {"context", model.sequence},
            {"eos_token_id", ids.eos >= 0 ? Json(ids.eos) : Json()}};
  }

  ModelDescription describe(const Json& config) const override {
    dsv3::ConfigReader reader(config);
    ModelDescription model;
    model.vocab = reader.integer("vocabulary");
    model.hidden = reader.integer("width");
    model.layers = reader.integer("depth");
    if (model.layers < 1 || model.layers > 1000)
      reader.mistake("\"depth\" must be between 1 and 1000");
    model.norm_eps = reader.number("norm_eps");
    model.init_std = reader.number("init_std", 0.02);
    model.sequence = reader.integer("context");
    reader.require("rope_pairs", {"interleaved", "half"});
    const Json pairs = reader.value("rope_pairs");
    model.position = {"rope",
                      {{"theta", reader.number("rope_base", 10000)},
                       {"layout", pairs.is_string() ? pairs.get<std::string>() : "interleaved"}}};
    const ComponentDescription attention{"mha",
                                         {{"heads", reader.integer("heads")},
                                          {"kv_heads", int64_t{0}},
                                          {"head_dim", int64_t{0}},
                                          {"qk_norm", false},
                                          {"rotary_share", 1.0}}};
    const ComponentDescription dense{"swiglu", {{"hidden", reader.integer("inner_width")}}};
    reader.finish();  // throws an error that lists all problems and all fields that were not read
    model.attention.assign(size_t(model.layers), attention);
    model.feed_forward.assign(size_t(model.layers), dense);
    return model;
  }

  std::vector<TensorPlace> tensors(const ModelDescription& model) const override {
    const int64_t width = model.hidden, inner = inner_width(model, 0);
    std::vector<TensorPlace> places;
    const auto add = [&](const std::string& name, std::vector<int64_t> shape,
                         const std::string& source, int64_t first_row = 0) {
      TensorPlace place;
      place.name = name;
      place.shape = std::move(shape);
      place.source = source;
      place.first_row = first_row;
      places.push_back(std::move(place));
    };
    add("tokens", {model.vocab, width}, "embedding.weight");
    for (int64_t layer = 0; layer < model.layers; ++layer) {
      const std::string stored = "blocks." + std::to_string(layer) + ".",
                        source = "layers." + std::to_string(layer) + ".";
      add(stored + "norm_a", {width}, source + "attention_norm.weight");
      for (const char* part : {"q", "k", "v", "o"})
        add(stored + part, {width, width}, source + "attention." + part + ".weight");
      add(stored + "norm_f", {width}, source + "feed_forward_norm.weight");
      // The model stacks gate and up in one parameter, but the folder stores two tensors.
      add(stored + "gate", {inner, width}, source + "feed_forward.gate_up.weight");
      add(stored + "up", {inner, width}, source + "feed_forward.gate_up.weight", inner);
      add(stored + "down", {width, inner}, source + "feed_forward.down.weight");
    }
    add("norm", {width}, "final_norm.weight");
    add("logits", {model.vocab, width}, "head.weight");
    return places;
  }

  // `dsv3 plugins check` writes and reads the models that these configs describe.
  std::vector<Json> examples() const override {
    const Json small{{"vocabulary", 31}, {"width", 16},       {"depth", 2},      {"heads", 4},
                     {"context", 64},    {"inner_width", 24}, {"norm_eps", 1e-5}};
    Json other = small;
    other.update({{"rope_pairs", "half"}, {"rope_base", 500.0}, {"init_std", 0.01}});
    return {small, other};
  }
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.format<Architecture>("@NAME@", "@NAME@, based on the format template");
}
