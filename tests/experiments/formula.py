"""Parameter counts of a DeepSeek-V3-style decoder, derived only from the report's definitions. Tests compare `dsv3-run
--dry-run` with these formulas, which are independent of the program.
"""

from dataclasses import dataclass


@dataclass
class Shape:
    hidden: int
    layers: int
    dense_layers: int
    heads: int
    q_lora: int  # 0 = queries are computed directly from the hidden state
    kv_lora: int
    nope: int
    rope: int
    v: int
    dense_ffn: int
    experts: int
    top_k: int
    shared: int
    expert_ffn: int
    vocab: int
    mtp_depth: int = 1


@dataclass
class Counts:
    total: int
    active: int
    total_without_embeddings: int  # excluding embedding, head and MTP
    active_without_embeddings: int


def mla(s):
    """Return the parameter count of multi-head latent attention, including its two latent norms."""
    qk = s.nope + s.rope
    if s.q_lora:
        queries = s.hidden * s.q_lora + s.q_lora + s.q_lora * s.heads * qk
    else:
        queries = s.hidden * s.heads * qk
    keys_values = s.hidden * (s.kv_lora + s.rope) + s.kv_lora + s.kv_lora * s.heads * (s.nope + s.v)
    return queries + keys_values + s.heads * s.v * s.hidden


def mha(hidden, heads, head_dim, kv_heads):
    return 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim


def swiglu(hidden, ffn):
    return 3 * hidden * ffn


def moe(s):
    """Return (total, active) parameter counts of the router and all experts, without the router bias, a buffer."""
    router = s.hidden * s.experts
    expert = swiglu(s.hidden, s.expert_ffn)
    return router + (s.experts + s.shared) * expert, router + (s.top_k + s.shared) * expert


def counts(s, attention=None):
    """Count the parameters of a model. `attention` is the count for one attention layer, by default that of MLA."""
    attention = mla(s) if attention is None else attention
    norms = 2 * s.hidden
    moe_total, moe_active = moe(s)
    moe_layers = s.layers - s.dense_layers
    dense = s.dense_layers * swiglu(s.hidden, s.dense_ffn)
    body = s.layers * (attention + norms) + dense
    body_total = body + moe_layers * moe_total + s.hidden  # the last term is the final norm
    body_active = body + moe_layers * moe_active + s.hidden
    # An MTP module has two input norms, the 2H x H projection, a block like the last layer's, and a final norm.
    mtp_rest = s.mtp_depth * (2 * s.hidden + 2 * s.hidden * s.hidden + attention + norms + s.hidden)
    embeddings = 2 * s.vocab * s.hidden
    return Counts(body_total + mtp_rest + s.mtp_depth * moe_total + embeddings,
                  body_active + mtp_rest + s.mtp_depth * moe_active + embeddings, body_total, body_active)


PRESETS = {
    "nano": Shape(hidden=640, layers=12, dense_layers=2, heads=10, q_lora=192, kv_lora=128, nope=32, rope=32, v=64,
                  dense_ffn=1728, experts=16, top_k=2, shared=1, expert_ffn=384, vocab=129280),
    "small": Shape(hidden=1024, layers=16, dense_layers=1, heads=16, q_lora=384, kv_lora=256, nope=32, rope=32, v=64,
                   dense_ffn=2816, experts=32, top_k=6, shared=1, expert_ffn=304, vocab=129280),
    "medium": Shape(hidden=1536, layers=24, dense_layers=1, heads=24, q_lora=768, kv_lora=512, nope=32, rope=32, v=64,
                    dense_ffn=4096, experts=64, top_k=8, shared=2, expert_ffn=256, vocab=129280),
}

if __name__ == "__main__":
    for preset, shape in PRESETS.items():
        print(preset, counts(shape))
