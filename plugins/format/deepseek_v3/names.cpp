#include "names.h"

namespace deepseek_v3 {
namespace {

using dsv3::TensorPlace;

class Places {
 public:
  Places(const dsv3::ModelDescription& model, const Sizes& sizes) : m_(model), s_(sizes) {}

  std::vector<TensorPlace> all() {
    add("model.embed_tokens.weight", {m_.vocab, m_.hidden}, "embedding.weight");
    for (int64_t layer = 0; layer < m_.layers; ++layer) block(layer);
    for (int64_t k = 0; k < m_.mtp_depth; ++k) mtp(m_.layers + k);
    add("model.norm.weight", {m_.hidden}, "final_norm.weight");
    TensorPlace& head = add("lm_head.weight", {m_.vocab, m_.hidden}, head_source());
    head.copy = m_.tied_head;
    head.written = !m_.tied_head;  // transformers leaves a tied head out
    return std::move(places_);
  }

 private:
  TensorPlace& add(const std::string& name, std::vector<int64_t> shape, const std::string& source,
                   int64_t first_row = 0) {
    TensorPlace place;
    place.name = name;
    place.shape = std::move(shape);
    place.source = source;
    place.first_row = first_row;
    return places_.emplace_back(std::move(place));
  }

  std::string head_source() const { return m_.tied_head ? "embedding.weight" : "head.weight"; }

  void block(int64_t layer) {
    const std::string there = "model.layers." + std::to_string(layer) + ".",
                      here = "layers." + std::to_string(layer) + ".";
    add(there + "input_layernorm.weight", {m_.hidden}, here + "attention_norm.weight");
    attention(there + "self_attn.", here + "attention.");
    add(there + "post_attention_layernorm.weight", {m_.hidden}, here + "feed_forward_norm.weight");
    if (layer < s_.first_moe || s_.experts == 0)
      gated(there + "mlp.", here + "feed_forward.", "gate_up.weight", "down.weight",
            s_.dense_hidden, 0);
    else
      mixture(there + "mlp.", here + "feed_forward.");
  }

  void attention(const std::string& there, const std::string& here) {
    const int64_t qk = s_.heads * (s_.nope + s_.rope);
    if (s_.q_lora_rank > 0) {
      add(there + "q_a_proj.weight", {s_.q_lora_rank, m_.hidden}, here + "q_a.weight");
      add(there + "q_a_layernorm.weight", {s_.q_lora_rank}, here + "q_a_norm.weight");
      add(there + "q_b_proj.weight", {qk, s_.q_lora_rank}, here + "q_b.weight");
    } else {
      add(there + "q_proj.weight", {qk, m_.hidden}, here + "q.weight");
    }
    add(there + "kv_a_proj_with_mqa.weight", {s_.kv_lora_rank + s_.rope, m_.hidden},
        here + "kv_a.weight");
    add(there + "kv_a_layernorm.weight", {s_.kv_lora_rank}, here + "kv_a_norm.weight");
    add(there + "kv_b_proj.weight", {s_.heads * (s_.nope + s_.v), s_.kv_lora_rank},
        here + "kv_b.weight");
    add(there + "o_proj.weight", {m_.hidden, s_.heads * s_.v}, here + "o.weight");
  }

  /// A gated unit: `gate_up` holds gate above up; `number` of several in one parameter.
  void gated(const std::string& there, const std::string& here, const std::string& gate_up,
             const std::string& down, int64_t inner, int64_t number) {
    add(there + "gate_proj.weight", {inner, m_.hidden}, here + gate_up, 2 * inner * number);
    add(there + "up_proj.weight", {inner, m_.hidden}, here + gate_up, 2 * inner * number + inner);
    add(there + "down_proj.weight", {m_.hidden, inner}, here + down, m_.hidden * number);
  }

  void mixture(const std::string& there, const std::string& here) {
    add(there + "gate.weight", {s_.experts, m_.hidden}, here + "router.weight");
    add(there + "gate.e_score_correction_bias", {s_.experts}, here + "router.bias").keep_fp32 =
        true;
    for (int64_t e = 0; e < s_.experts; ++e)
      gated(there + "experts." + std::to_string(e) + ".", here, "experts.gate_up.weight",
            "experts.down.weight", s_.expert_hidden, e);
    gated(there + "shared_experts.", here, "shared.gate_up.weight", "shared.down.weight",
          s_.shared * s_.expert_hidden, 0);
  }

  /// Module k is layer N + k, with copies of the embedding and the head.
  void mtp(int64_t layer) {
    const std::string there = "model.layers." + std::to_string(layer) + ".",
                      here = "layers." + std::to_string(layer) + ".";
    add(there + "embed_tokens.weight", {m_.vocab, m_.hidden}, "embedding.weight").copy = true;
    add(there + "enorm.weight", {m_.hidden}, here + "embedding_norm.weight");
    add(there + "hnorm.weight", {m_.hidden}, here + "hidden_norm.weight");
    add(there + "eh_proj.weight", {m_.hidden, 2 * m_.hidden}, here + "projection.weight");
    block(layer);
    add(there + "shared_head.norm.weight", {m_.hidden}, here + "final_norm.weight");
    add(there + "shared_head.head.weight", {m_.vocab, m_.hidden}, head_source()).copy = true;
  }

  const dsv3::ModelDescription& m_;
  const Sizes& s_;
  std::vector<TensorPlace> places_;
};

}  // namespace

std::vector<TensorPlace> places(const dsv3::ModelDescription& model, const Sizes& sizes) {
  return Places(model, sizes).all();
}

}  // namespace deepseek_v3
