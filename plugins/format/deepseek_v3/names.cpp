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
    head.written = !m_.tied_head;  // the Transformers library omits a tied head
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
    const std::string stored = "model.layers." + std::to_string(layer) + ".",
                      source = "layers." + std::to_string(layer) + ".";
    add(stored + "input_layernorm.weight", {m_.hidden}, source + "attention_norm.weight");
    attention(stored + "self_attn.", source + "attention.");
    add(stored + "post_attention_layernorm.weight", {m_.hidden},
        source + "feed_forward_norm.weight");
    if (layer < s_.first_moe || s_.experts == 0)
      gated(stored + "mlp.", source + "feed_forward.", "gate_up.weight", "down.weight",
            s_.dense_hidden, 0);
    else
      mixture(stored + "mlp.", source + "feed_forward.");
  }

  void attention(const std::string& stored, const std::string& source) {
    const int64_t qk = s_.heads * (s_.nope + s_.rope);
    if (s_.q_lora_rank > 0) {
      add(stored + "q_a_proj.weight", {s_.q_lora_rank, m_.hidden}, source + "q_a.weight");
      add(stored + "q_a_layernorm.weight", {s_.q_lora_rank}, source + "q_a_norm.weight");
      add(stored + "q_b_proj.weight", {qk, s_.q_lora_rank}, source + "q_b.weight");
    } else {
      add(stored + "q_proj.weight", {qk, m_.hidden}, source + "q.weight");
    }
    add(stored + "kv_a_proj_with_mqa.weight", {s_.kv_lora_rank + s_.rope, m_.hidden},
        source + "kv_a.weight");
    add(stored + "kv_a_layernorm.weight", {s_.kv_lora_rank}, source + "kv_a_norm.weight");
    add(stored + "kv_b_proj.weight", {s_.heads * (s_.nope + s_.v), s_.kv_lora_rank},
        source + "kv_b.weight");
    add(stored + "o_proj.weight", {m_.hidden, s_.heads * s_.v}, source + "o.weight");
  }

  /// Adds the tensors of one gated feed-forward layer, e.g. of expert `index`. The parameter
  /// `gate_up` may stack several such layers, each with its gate matrix above its up matrix.
  void gated(const std::string& stored, const std::string& source, const std::string& gate_up,
             const std::string& down, int64_t inner, int64_t index) {
    add(stored + "gate_proj.weight", {inner, m_.hidden}, source + gate_up, 2 * inner * index);
    add(stored + "up_proj.weight", {inner, m_.hidden}, source + gate_up, 2 * inner * index + inner);
    add(stored + "down_proj.weight", {m_.hidden, inner}, source + down, m_.hidden * index);
  }

  void mixture(const std::string& stored, const std::string& source) {
    add(stored + "gate.weight", {s_.experts, m_.hidden}, source + "router.weight");
    add(stored + "gate.e_score_correction_bias", {s_.experts}, source + "router.bias").keep_fp32 =
        true;
    for (int64_t e = 0; e < s_.experts; ++e)
      gated(stored + "experts." + std::to_string(e) + ".", source, "experts.gate_up.weight",
            "experts.down.weight", s_.expert_hidden, e);
    gated(stored + "shared_experts.", source, "shared.gate_up.weight", "shared.down.weight",
          s_.shared * s_.expert_hidden, 0);
  }

  /// MTP module k is stored as layer N + k, with copies of the embedding and the head.
  void mtp(int64_t layer) {
    const std::string stored = "model.layers." + std::to_string(layer) + ".",
                      source = "layers." + std::to_string(layer) + ".";
    add(stored + "embed_tokens.weight", {m_.vocab, m_.hidden}, "embedding.weight").copy = true;
    add(stored + "enorm.weight", {m_.hidden}, source + "embedding_norm.weight");
    add(stored + "hnorm.weight", {m_.hidden}, source + "hidden_norm.weight");
    add(stored + "eh_proj.weight", {m_.hidden, 2 * m_.hidden}, source + "projection.weight");
    block(layer);
    add(stored + "shared_head.norm.weight", {m_.hidden}, source + "final_norm.weight");
    add(stored + "shared_head.head.weight", {m_.vocab, m_.hidden}, head_source()).copy = true;
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
