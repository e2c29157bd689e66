// DeepseekV3ForCausalLM: MLA, dense layers followed by mixtures of experts, and MTP modules.
#include <algorithm>

#include <dsv3/sdk/config_reader.h>
#include <dsv3/sdk/format.h>
#include <dsv3/sdk/plugin.h>

#include "names.h"

namespace deepseek_v3 {
namespace {

using dsv3::ComponentDescription;
using dsv3::ModelDescription;
using Json = nlohmann::json;

/// The inner width of a dense layer. For `hidden: auto`, reads it from the parameter's shape.
int64_t dense_width(const ModelDescription& model, size_t layer) {
  const int64_t width = model.feed_forward[layer].option<int64_t>("hidden");
  if (width > 0) return width;
  return model.shapes.at("layers." + std::to_string(layer) + ".feed_forward.gate_up.weight")[0] / 2;
}

/// Whether two components have the same plugin and the same values for the options in `keys`.
bool same(const ComponentDescription& a, const ComponentDescription& b,
          const std::vector<std::string>& keys) {
  return a.plugin == b.plugin && std::all_of(keys.begin(), keys.end(), [&](const std::string& key) {
           return a.options.at(key) == b.options.at(key);
         });
}

const std::vector<std::string> kMlaKeys{"heads",          "q_lora_rank", "kv_lora_rank",
                                        "qk_nope_dim",    "qk_rope_dim", "v_dim",
                                        "latent_norm_eps"};
const std::vector<std::string> kMoeKeys{"routed",    "top_k",        "shared",
                                        "hidden",    "groups",       "topk_groups",
                                        "normalize", "routed_scale", "group_score"};

/// Collects the reasons why the architecture cannot express a model.
class Obstacles {
 public:
  explicit Obstacles(const ModelDescription& model) : m_(model) {}

  std::vector<std::string> all() {
    attention();
    feed_forward();
    if (m_.position.plugin != "rope" && m_.position.plugin != "yarn")
      add("model.position is " + m_.position.plugin +
          ", but the architecture supports only rope and yarn");
    if (m_.norm_place != "pre")
      add("model.norm.place is " + m_.norm_place + ", but the architecture uses pre");
    if (m_.mtp_depth > 0 && m_.mtp_concat != "embedding_first")
      add("model.mtp.concat is " + m_.mtp_concat +
          ", but the architecture uses embedding_first (--no-mtp omits the MTP modules)");
    return std::move(obstacles_);
  }

 private:
  void add(const std::string& text) { obstacles_.push_back(text); }

  void attention() {
    for (const ComponentDescription& layer : m_.attention)
      if (layer.plugin != "mla")
        return add("model.attention is " + layer.plugin + ", but the architecture uses mla");
    for (const ComponentDescription& layer : m_.attention)
      if (!same(layer, m_.attention.front(), kMlaKeys))
        return add(
            "attention layers have different sizes, but the architecture requires the same size in "
            "all layers");
    if (m_.attention.front().option<double>("latent_norm_eps") != 1e-6)
      add("attention mla: latent_norm_eps must be 1e-6 in this architecture");
  }

  void feed_forward() {
    size_t first_moe = 0;
    while (first_moe < m_.feed_forward.size() && m_.feed_forward[first_moe].plugin == "swiglu")
      ++first_moe;
    for (size_t layer = first_moe; layer < m_.feed_forward.size(); ++layer)
      if (m_.feed_forward[layer].plugin != "moe")
        return add("model.feed_forward in layer " + std::to_string(layer) + " is " +
                   m_.feed_forward[layer].plugin +
                   ", but the architecture requires swiglu layers followed by moe layers");
    for (size_t layer = 0; layer < first_moe; ++layer)
      if (dense_width(m_, layer) != dense_width(m_, 0))
        return add(
            "dense layers have different widths, but the architecture requires the same width in "
            "all of them");
    if (first_moe == m_.feed_forward.size()) return;
    const ComponentDescription& moe = m_.feed_forward.back();
    for (size_t layer = first_moe; layer < m_.feed_forward.size(); ++layer)
      if (!same(m_.feed_forward[layer], moe, kMoeKeys))
        return add(
            "moe layers have different options, but the architecture requires the same options in "
            "all of them");
    if (moe.option<int64_t>("shared") < 1)
      add("feed_forward moe has no shared expert, but the architecture requires one");
    if (moe.option<int64_t>("groups") > 1 && moe.option<std::string>("group_score") != "top2_sum")
      add("feed_forward moe: group_score must be top2_sum in this architecture");
    if (moe.option<int64_t>("routed") / moe.option<int64_t>("groups") < 2)
      add("feed_forward moe has one expert per group, but the architecture scores each group by "
          "its two best experts");
  }

  const ModelDescription& m_;
  std::vector<std::string> obstacles_;
};

/// Largest number of experts in all layers together, which bounds the list of tensors.
/// DeepSeek-V3 has 14,848.
constexpr int64_t kMaxExperts = 1 << 18;

Sizes sizes_of(const ModelDescription& model) {
  Sizes sizes;
  const ComponentDescription& mla = model.attention.front();
  sizes.heads = mla.option<int64_t>("heads");
  sizes.q_lora_rank = mla.option<int64_t>("q_lora_rank");
  sizes.kv_lora_rank = mla.option<int64_t>("kv_lora_rank");
  sizes.nope = mla.option<int64_t>("qk_nope_dim");
  sizes.rope = mla.option<int64_t>("qk_rope_dim");
  sizes.v = mla.option<int64_t>("v_dim");
  for (const ComponentDescription& layer : model.feed_forward)
    if (layer.plugin == "swiglu") ++sizes.first_moe;
  if (sizes.first_moe > 0) sizes.dense_hidden = dense_width(model, 0);
  if (sizes.first_moe < model.layers) {
    const ComponentDescription& moe = model.feed_forward.back();
    sizes.experts = moe.option<int64_t>("routed");
    sizes.expert_hidden = moe.option<int64_t>("hidden");
    sizes.shared = moe.option<int64_t>("shared");
  }
  return sizes;
}

/// Writes the mixture-of-experts fields. For a dense model, writes valid values that also make its
/// MTP modules dense.
void write_mixture(Json& config, const ModelDescription& model, const Sizes& sizes) {
  const bool has_experts = sizes.experts > 0;
  const ComponentDescription& moe = model.feed_forward.back();
  const auto integer = [&](const char* key, int64_t fallback) {
    return has_experts ? moe.option<int64_t>(key) : fallback;
  };
  config["first_k_dense_replace"] = has_experts ? sizes.first_moe : model.layers + model.mtp_depth;
  config["moe_intermediate_size"] = integer("hidden", sizes.dense_hidden);
  config["n_routed_experts"] = integer("routed", 2);
  config["n_shared_experts"] = integer("shared", 1);
  config["num_experts_per_tok"] = integer("top_k", 1);
  config["n_group"] = integer("groups", 1);
  config["topk_group"] = integer("topk_groups", 1);
  config["norm_topk_prob"] = has_experts ? moe.option<bool>("normalize") : true;
  config["routed_scaling_factor"] = has_experts ? moe.option<double>("routed_scale") : 1.0;
  config["scoring_func"] = "sigmoid";
  config["topk_method"] = "noaux_tc";
  config["moe_layer_freq"] = 1;
}

dsv3::RopeParameters rope_of(const ComponentDescription& position) {
  dsv3::RopeParameters rope;
  rope.theta = position.option<double>("theta");
  rope.yarn = position.plugin == "yarn";
  if (!rope.yarn) return rope;
  rope.factor = position.option<double>("factor");
  rope.beta_fast = position.option<double>("beta_fast");
  rope.beta_slow = position.option<double>("beta_slow");
  rope.mscale = position.option<double>("mscale");
  rope.mscale_all_dim = position.option<double>("mscale_all_dim");
  rope.original_length = position.option<int64_t>("original_length");
  return rope;
}

ComponentDescription position_of(const dsv3::RopeParameters& rope, bool interleaved) {
  ComponentDescription position{
      rope.yarn ? "yarn" : "rope",
      {{"theta", rope.theta}, {"layout", std::string(interleaved ? "interleaved" : "half")}}};
  if (rope.yarn) {
    position.options["factor"] = rope.factor;
    position.options["beta_fast"] = rope.beta_fast;
    position.options["beta_slow"] = rope.beta_slow;
    position.options["mscale"] = rope.mscale;
    position.options["mscale_all_dim"] = rope.mscale_all_dim;
    position.options["original_length"] = rope.original_length;
  }
  return position;
}

class DeepseekV3 final : public dsv3::Format {
 public:
  using Options = dsv3::NoOptions;
  explicit DeepseekV3(const Options&) {}

  std::vector<std::string> obstacles(const ModelDescription& model) const override {
    return Obstacles(model).all();
  }
  Json config(const ModelDescription& model, const dsv3::TokenIds& ids) const override;
  ModelDescription describe(const Json& config) const override;
  std::vector<dsv3::TensorPlace> tensors(const ModelDescription& model) const override {
    return places(model, sizes_of(model));
  }
  std::vector<Json> examples() const override;
};

Json DeepseekV3::config(const ModelDescription& model, const dsv3::TokenIds& ids) const {
  const Sizes sizes = sizes_of(model);
  Json config{{"architectures", {"DeepseekV3ForCausalLM"}},
              {"model_type", "deepseek_v3"},
              {"vocab_size", model.vocab},
              {"hidden_size", model.hidden},
              {"num_hidden_layers", model.layers},
              {"num_nextn_predict_layers", model.mtp_depth},
              {"num_attention_heads", sizes.heads},
              {"num_key_value_heads", sizes.heads},
              {"kv_lora_rank", sizes.kv_lora_rank},
              {"qk_nope_head_dim", sizes.nope},
              {"qk_rope_head_dim", sizes.rope},
              {"v_head_dim", sizes.v},
              {"intermediate_size", sizes.dense_hidden > 0 ? sizes.dense_hidden : model.hidden},
              {"hidden_act", "silu"},
              {"rms_norm_eps", model.norm_eps},
              {"initializer_range", model.init_std},
              {"max_position_embeddings", model.sequence},
              {"tie_word_embeddings", model.tied_head},
              {"attention_bias", false},
              {"attention_dropout", 0.0},
              {"use_cache", true},
              {"rope_interleave", model.position.option<std::string>("layout") == "interleaved"}};
  config["q_lora_rank"] = sizes.q_lora_rank > 0 ? Json(sizes.q_lora_rank) : Json();
  config["bos_token_id"] = ids.bos >= 0 ? Json(ids.bos) : Json();
  config["eos_token_id"] = ids.eos >= 0 ? Json(ids.eos) : Json();
  write_mixture(config, model, sizes);
  dsv3::write_rope(config, rope_of(model.position));
  return config;
}

ComponentDescription read_attention(dsv3::ConfigReader& reader) {
  ComponentDescription mla{"mla", {}};
  const int64_t heads = reader.integer("num_attention_heads");
  mla.options["heads"] = heads;
  const Json q_lora = reader.value("q_lora_rank");
  mla.options["q_lora_rank"] = q_lora.is_number_integer() ? q_lora.get<int64_t>() : int64_t{0};
  if (!q_lora.is_null() && !q_lora.is_number_integer())
    reader.mistake("\"q_lora_rank\" must be an integer or null, but is " + q_lora.dump());
  mla.options["kv_lora_rank"] = reader.integer("kv_lora_rank");
  mla.options["qk_nope_dim"] = reader.integer("qk_nope_head_dim");
  mla.options["qk_rope_dim"] = reader.integer("qk_rope_head_dim");
  mla.options["v_dim"] = reader.integer("v_head_dim");
  mla.options["latent_norm_eps"] = 1e-6;
  reader.require("num_key_value_heads", {heads});
  reader.require("head_dim", {std::get<int64_t>(mla.options["qk_rope_dim"])});
  reader.require("qk_head_dim", {std::get<int64_t>(mla.options["qk_nope_dim"]) +
                                 std::get<int64_t>(mla.options["qk_rope_dim"])});
  reader.require("attention_bias", {false});
  reader.require("attention_dropout", {0, 0.0});
  return mla;
}

ComponentDescription read_mixture(dsv3::ConfigReader& reader) {
  ComponentDescription moe{"moe", {}};
  moe.options["routed"] = reader.integer("n_routed_experts");
  moe.options["shared"] = reader.integer("n_shared_experts");
  moe.options["hidden"] = reader.integer("moe_intermediate_size");
  moe.options["top_k"] = reader.integer("num_experts_per_tok");
  moe.options["groups"] = reader.integer("n_group", 1);
  moe.options["topk_groups"] = reader.integer("topk_group", 1);
  moe.options["group_score"] = std::string("top2_sum");
  moe.options["normalize"] = reader.boolean("norm_topk_prob", true);
  moe.options["routed_scale"] = reader.number("routed_scaling_factor", 1.0);
  reader.require("scoring_func", {"sigmoid"});
  reader.require("topk_method", {"noaux_tc"});
  reader.require("moe_layer_freq", {1});
  reader.require("ep_size", {1});
  return moe;
}

ModelDescription DeepseekV3::describe(const Json& config) const {
  dsv3::ConfigReader reader(config);
  ModelDescription model;
  model.vocab = reader.integer("vocab_size");
  model.hidden = reader.integer("hidden_size");
  model.layers = reader.integer("num_hidden_layers");
  if (model.layers < 1 || model.layers > 10'000) {
    reader.mistake("\"num_hidden_layers\" must be between 1 and 10000");
    model.layers = 1;
  }
  model.mtp_depth = reader.integer("num_nextn_predict_layers", reader.integer("num_mtp_layers", 0));
  model.norm_eps = reader.number("rms_norm_eps", 1e-6);
  model.init_std = reader.number("initializer_range", 0.02);
  model.tied_head = reader.boolean("tie_word_embeddings", false);
  model.sequence = reader.integer("max_position_embeddings");
  reader.require("hidden_act", {"silu"});
  reader.require("pretraining_tp", {1});
  reader.ignore("output_router_logits");  // only affects which values the forward pass returns
  reader.ignore("aux_loss_alpha");        // only affects training, like seq_aux
  reader.ignore("seq_aux");
  const ComponentDescription attention = read_attention(reader), moe = read_mixture(reader);
  const ComponentDescription dense{"swiglu", {{"hidden", reader.integer("intermediate_size")}}};
  const int64_t first_moe = reader.integer("first_k_dense_replace", 0);
  const bool interleaved = reader.boolean("rope_interleave", true);
  model.position = position_of(dsv3::read_rope(reader, model.sequence), interleaved);
  if (first_moe >= model.layers && first_moe < model.layers + model.mtp_depth)
    reader.mistake(
        "\"first_k_dense_replace\" makes all layers dense but not the MTP modules; in dsv3, MTP "
        "modules have the same components as the last layer");
  if (std::get<int64_t>(moe.options.at("routed")) > kMaxExperts / (model.layers + model.mtp_depth))
    reader.mistake(
        "the experts of all layers and MTP modules, \"n_routed_experts\" of each, must be at "
        "most " +
        std::to_string(kMaxExperts));
  reader.finish();
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    model.attention.push_back(attention);
    model.feed_forward.push_back(layer < first_moe ? dense : moe);
  }
  return model;
}

std::vector<Json> DeepseekV3::examples() const {
  const Json small{{"vocab_size", 31},
                   {"hidden_size", 16},
                   {"num_hidden_layers", 3},
                   {"num_attention_heads", 2},
                   {"num_key_value_heads", 2},
                   {"q_lora_rank", 6},
                   {"kv_lora_rank", 8},
                   {"qk_nope_head_dim", 4},
                   {"qk_rope_head_dim", 2},
                   {"v_head_dim", 6},
                   {"intermediate_size", 24},
                   {"first_k_dense_replace", 1},
                   {"moe_intermediate_size", 12},
                   {"n_routed_experts", 4},
                   {"n_shared_experts", 1},
                   {"num_experts_per_tok", 2},
                   {"n_group", 2},
                   {"topk_group", 1},
                   {"norm_topk_prob", true},
                   {"routed_scaling_factor", 2.5},
                   {"max_position_embeddings", 64}};
  std::vector<Json> all{small};
  const auto add = [&](const Json& changes) {
    all.push_back(small);
    all.back().update(changes);
  };
  add({{"q_lora_rank", nullptr}, {"rope_interleave", false}, {"rope_theta", 5000.0}});
  add({{"num_nextn_predict_layers", 2}, {"n_shared_experts", 2}, {"norm_topk_prob", false}});
  add({{"first_k_dense_replace", 3}, {"tie_word_embeddings", true}});
  add({{"first_k_dense_replace", 0}, {"num_nextn_predict_layers", 1}});
  add({{"rope_scaling",
        {{"type", "yarn"},
         {"factor", 4.0},
         {"mscale", 1.0},
         {"mscale_all_dim", 0.5},
         {"original_max_position_embeddings", 16}}}});
  return all;
}

}  // namespace
}  // namespace deepseek_v3

DSV3_PLUGIN(registrar) {
  registrar.format<deepseek_v3::DeepseekV3>("deepseek_v3", "Hugging Face DeepseekV3ForCausalLM");
}
