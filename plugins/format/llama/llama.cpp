// LlamaForCausalLM: (grouped-query) attention and dense gated layers.
#include <dsv3/sdk/config_reader.h>
#include <dsv3/sdk/format.h>
#include <dsv3/sdk/plugin.h>

namespace {

using dsv3::ComponentDescription;
using dsv3::ModelDescription;
using dsv3::TensorPlace;
using Json = nlohmann::json;

struct Sizes {
  int64_t heads = 0, kv_heads = 0, head_dim = 0, inner = 0;
  bool operator==(const Sizes&) const = default;
};

/// The sizes of one layer, with `auto` resolved.
Sizes sizes_of(const ModelDescription& model, size_t layer) {
  const ComponentDescription &mha = model.attention[layer], &mlp = model.feed_forward[layer];
  Sizes sizes;
  sizes.heads = mha.option<int64_t>("heads");
  sizes.kv_heads = mha.option<int64_t>("kv_heads");
  if (sizes.kv_heads == 0) sizes.kv_heads = sizes.heads;
  sizes.head_dim = mha.option<int64_t>("head_dim");
  if (sizes.head_dim == 0) sizes.head_dim = model.hidden / sizes.heads;
  sizes.inner = mlp.option<int64_t>("hidden");
  if (sizes.inner == 0)
    sizes.inner =
        model.shapes.at("layers." + std::to_string(layer) + ".feed_forward.gate_up.weight")[0] / 2;
  return sizes;
}

std::vector<std::string> obstacles_of(const ModelDescription& model) {
  std::vector<std::string> obstacles;
  const auto add = [&](const std::string& text) { obstacles.push_back(text); };
  for (const ComponentDescription& layer : model.attention)
    if (layer.plugin != "mha")
      return {"model.attention is " + layer.plugin + ", but the architecture uses mha"};
  for (const ComponentDescription& layer : model.feed_forward)
    if (layer.plugin != "swiglu")
      return {"model.feed_forward is " + layer.plugin + ", but the architecture uses swiglu"};
  for (size_t layer = 0; layer < model.attention.size(); ++layer) {
    const ComponentDescription& mha = model.attention[layer];
    if (mha.option<bool>("qk_norm"))
      add("attention mha: qk_norm is on, but the architecture has no query and key norms");
    if (mha.option<double>("rotary_share") != 1)
      add("attention mha: rotary_share must be 1 in this architecture");
    if (!(sizes_of(model, layer) == sizes_of(model, 0)))
      add("layers have different sizes, but the architecture requires the same sizes in all "
          "layers");
    if (!obstacles.empty()) break;
  }
  const int64_t heads = model.attention.front().option<int64_t>("heads");
  if (model.hidden % heads != 0)
    add("model.hidden must be a multiple of the number of attention heads in this architecture");
  if (model.position.plugin == "yarn" && model.position.option<double>("mscale_all_dim") != 0)
    add("position yarn: mscale_all_dim is not 0, but the architecture does not scale the softmax");
  if (model.position.plugin != "rope" && model.position.plugin != "yarn")
    add("model.position is " + model.position.plugin +
        ", but the architecture supports only rope and yarn");
  if (model.norm_place != "pre")
    add("model.norm.place is " + model.norm_place + ", but the architecture uses pre");
  if (model.mtp_depth > 0)
    add("the model has MTP modules, but the architecture has none (--no-mtp omits them)");
  return obstacles;
}

/// Returns the row order of the rotated projections: the architecture pairs feature j of a head
/// with j + R/2, whereas the interleaved layout pairs 2j with 2j + 1.
std::vector<int64_t> half_split_rows(int64_t heads, int64_t head_dim) {
  std::vector<int64_t> rows;
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t j = 0; j < head_dim; ++j)
      rows.push_back(head * head_dim + (j < head_dim / 2 ? 2 * j : 2 * (j - head_dim / 2) + 1));
  return rows;
}

dsv3::RopeParameters rope_of(const ComponentDescription& position) {
  dsv3::RopeParameters rope;
  rope.theta = position.option<double>("theta");
  rope.yarn = position.plugin == "yarn";
  if (!rope.yarn) return rope;
  rope.factor = position.option<double>("factor");
  rope.beta_fast = position.option<double>("beta_fast");
  rope.beta_slow = position.option<double>("beta_slow");
  rope.original_length = position.option<int64_t>("original_length");
  return rope;
}

ComponentDescription position_of(const dsv3::RopeParameters& rope, dsv3::ConfigReader& reader) {
  ComponentDescription position{rope.yarn ? "yarn" : "rope",
                                {{"theta", rope.theta}, {"layout", std::string("half")}}};
  if (!rope.yarn) return position;
  if (rope.mscale != 0 || rope.mscale_all_dim != 0)
    reader.mistake("\"mscale\" in the RoPE parameters is not supported for this architecture");
  position.options["factor"] = rope.factor;
  position.options["beta_fast"] = rope.beta_fast;
  position.options["beta_slow"] = rope.beta_slow;
  position.options["mscale"] = 0.0;
  position.options["mscale_all_dim"] = 0.0;
  position.options["original_length"] = rope.original_length;
  return position;
}

class Llama final : public dsv3::Format {
 public:
  using Options = dsv3::NoOptions;
  explicit Llama(const Options&) {}

  std::vector<std::string> obstacles(const ModelDescription& model) const override {
    return obstacles_of(model);
  }
  Json config(const ModelDescription& model, const dsv3::TokenIds& ids) const override;
  ModelDescription describe(const Json& config) const override;
  std::vector<TensorPlace> tensors(const ModelDescription& model) const override;
  std::vector<Json> examples() const override;
};

Json Llama::config(const ModelDescription& model, const dsv3::TokenIds& ids) const {
  const Sizes sizes = sizes_of(model, 0);
  Json config{{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"vocab_size", model.vocab},
              {"hidden_size", model.hidden},
              {"intermediate_size", sizes.inner},
              {"num_hidden_layers", model.layers},
              {"num_attention_heads", sizes.heads},
              {"num_key_value_heads", sizes.kv_heads},
              {"head_dim", sizes.head_dim},
              {"hidden_act", "silu"},
              {"rms_norm_eps", model.norm_eps},
              {"initializer_range", model.init_std},
              {"max_position_embeddings", model.sequence},
              {"tie_word_embeddings", model.tied_head},
              {"attention_bias", false},
              {"mlp_bias", false},
              {"attention_dropout", 0.0},
              {"use_cache", true}};
  config["bos_token_id"] = ids.bos >= 0 ? Json(ids.bos) : Json();
  config["eos_token_id"] = ids.eos >= 0 ? Json(ids.eos) : Json();
  dsv3::write_rope(config, rope_of(model.position));
  return config;
}

ModelDescription Llama::describe(const Json& config) const {
  dsv3::ConfigReader reader(config);
  ModelDescription model;
  model.vocab = reader.integer("vocab_size");
  model.hidden = reader.integer("hidden_size");
  model.layers = reader.integer("num_hidden_layers");
  if (model.layers < 1 || model.layers > 10'000)
    reader.mistake("\"num_hidden_layers\" must be between 1 and 10000");
  model.norm_eps = reader.number("rms_norm_eps", 1e-6);
  model.init_std = reader.number("initializer_range", 0.02);
  model.tied_head = reader.boolean("tie_word_embeddings", false);
  model.sequence = reader.integer("max_position_embeddings", 2048);
  const int64_t heads = reader.integer("num_attention_heads");
  const int64_t kv_heads = reader.integer("num_key_value_heads", heads);
  const int64_t head_dim = reader.integer("head_dim", heads > 0 ? model.hidden / heads : 0);
  const ComponentDescription mha{"mha",
                                 {{"heads", heads},
                                  {"kv_heads", kv_heads},
                                  {"head_dim", head_dim},
                                  {"qk_norm", false},
                                  {"rotary_share", 1.0}}};
  const ComponentDescription mlp{"swiglu", {{"hidden", reader.integer("intermediate_size")}}};
  reader.require("hidden_act", {"silu"});
  reader.require("attention_bias", {false});
  reader.require("mlp_bias", {false});
  reader.require("attention_dropout", {0, 0.0});
  reader.require("pretraining_tp", {1});
  model.position = position_of(dsv3::read_rope(reader, model.sequence), reader);
  reader.finish();
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    model.attention.push_back(mha);
    model.feed_forward.push_back(mlp);
  }
  return model;
}

std::vector<TensorPlace> Llama::tensors(const ModelDescription& model) const {
  const Sizes s = sizes_of(model, 0);
  const bool interleaved = model.position.option<std::string>("layout") == "interleaved";
  std::vector<TensorPlace> places;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape,
                       const std::string& source, int64_t first_row = 0) -> TensorPlace& {
    TensorPlace place;
    place.name = name;
    place.shape = std::move(shape);
    place.source = source;
    place.first_row = first_row;
    return places.emplace_back(std::move(place));
  };
  add("model.embed_tokens.weight", {model.vocab, model.hidden}, "embedding.weight");
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string stored = "model.layers." + std::to_string(layer) + ".",
                      source = "layers." + std::to_string(layer) + ".";
    add(stored + "input_layernorm.weight", {model.hidden}, source + "attention_norm.weight");
    TensorPlace& q = add(stored + "self_attn.q_proj.weight", {s.heads * s.head_dim, model.hidden},
                         source + "attention.q.weight");
    if (interleaved) q.rows = half_split_rows(s.heads, s.head_dim);
    TensorPlace& k = add(stored + "self_attn.k_proj.weight",
                         {s.kv_heads * s.head_dim, model.hidden}, source + "attention.k.weight");
    if (interleaved) k.rows = half_split_rows(s.kv_heads, s.head_dim);
    add(stored + "self_attn.v_proj.weight", {s.kv_heads * s.head_dim, model.hidden},
        source + "attention.v.weight");
    add(stored + "self_attn.o_proj.weight", {model.hidden, s.heads * s.head_dim},
        source + "attention.o.weight");
    add(stored + "post_attention_layernorm.weight", {model.hidden},
        source + "feed_forward_norm.weight");
    const std::string gate_up = source + "feed_forward.gate_up.weight";
    add(stored + "mlp.gate_proj.weight", {s.inner, model.hidden}, gate_up);
    add(stored + "mlp.up_proj.weight", {s.inner, model.hidden}, gate_up, s.inner);
    add(stored + "mlp.down_proj.weight", {model.hidden, s.inner},
        source + "feed_forward.down.weight");
  }
  add("model.norm.weight", {model.hidden}, "final_norm.weight");
  TensorPlace& head = add("lm_head.weight", {model.vocab, model.hidden},
                          model.tied_head ? "embedding.weight" : "head.weight");
  head.copy = model.tied_head;
  head.written = !model.tied_head;  // the Transformers library omits a tied head
  return places;
}

std::vector<Json> Llama::examples() const {
  const Json small{{"vocab_size", 31},         {"hidden_size", 16},
                   {"intermediate_size", 24},  {"num_hidden_layers", 2},
                   {"num_attention_heads", 4}, {"max_position_embeddings", 64}};
  std::vector<Json> all{small, small, small};
  all[1].update({{"num_key_value_heads", 2}, {"head_dim", 6}, {"tie_word_embeddings", true}});
  all[2].update({{"rope_parameters",
                  {{"rope_type", "yarn"},
                   {"rope_theta", 5000.0},
                   {"factor", 4.0},
                   {"original_max_position_embeddings", 16}}}});
  return all;
}

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.format<Llama>("llama", "Hugging Face LlamaForCausalLM");
}
