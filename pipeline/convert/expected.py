"""Which tensors a config.json promises, under which names, of which shapes: the GGUF file's and the checkpoint's."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pipeline.convert.config import Config
from pipeline.convert.families import Family

# GGUF's name in a layer -> transformers'
LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
# Instead of those of q, k, v and gate: one matrix of rows of q, k and v, one of gate's rows and then up's.
FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
APART = ("attn_q", "attn_k", "attn_v", "ffn_gate")
# The names that Meta and Mistral give in their own files, whose q and k are in llama.cpp's order already.
META_LAYER = {
    "attn_norm": "attention_norm", "attn_q": "attention.wq", "attn_k": "attention.wk", "attn_v": "attention.wv",
    "attn_output": "attention.wo", "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1", "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2",
}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """The checkpoint's names of what is not in a layer, of a layer's parts, and what layers begin with."""

    embeddings: str
    norm: str
    head: str
    layers: str
    layer: dict[str, str]
    permuted: bool


def names_of(family: Family, stored: Collection[str]) -> Names:
    """Transformers' names, or Meta's, where the checkpoint has those and the family is Llama's."""
    if family.permuted and "tok_embeddings.weight" in stored:
        return Names("tok_embeddings", "norm", "output", "layers", META_LAYER, permuted=False)
    layer = LAYER | POST_NORMS if family.post_norms else LAYER
    if not family.qk_norm:
        layer = {name: stored for name, stored in layer.items() if name not in ("attn_q_norm", "attn_k_norm")}
    if family.fused:
        layer = {name: stored for name, stored in layer.items() if name not in APART} | FUSED
    layer = layer | dict(family.layer_names)
    return Names("model.embed_tokens", "model.norm", "lm_head", "model.layers", layer, family.permuted)


@dataclass(frozen=True)
class Expected:
    """A tensor: GGUF's name, the checkpoint's, its shape, and the heads whose rows are put in another order, if any."""

    name: str
    stored: str
    shape: tuple[int, ...]
    permuted_heads: int = 0


def expected_tensors(config: Config, family: Family, names: Names) -> Iterator[Expected]:
    """Every tensor of a layer, in the GGUF file's order, then the last norm."""
    hidden, inner, head = config.integer("hidden_size"), config.integer("intermediate_size"), config.head_dim
    rows, kv_rows = config.heads * head, config.kv_heads * head
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_qkv": (rows + 2 * kv_rows, hidden), "attn_q": (rows, hidden), "attn_k": (kv_rows, hidden), "attn_v": (kv_rows, hidden),
        "attn_q_norm": (head,), "attn_k_norm": (head,),
        "attn_output": (hidden, rows),
        "post_attention_norm": (hidden,), "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden), "ffn_up": (2 * inner if family.fused else inner, hidden),
        "ffn_down": (hidden, inner),
        "post_ffw_norm": (hidden,),
    }  # fmt: skip
    biases = _biases(config, family)
    heads = {"attn_q": config.heads, "attn_k": config.kv_heads} if names.permuted else {}
    for layer in range(config.layers):
        for part, shape in shapes.items():
            if part not in names.layer:
                continue
            stored = f"{names.layers}.{layer}.{names.layer[part]}"
            permuted = heads.get(part, 0)
            yield Expected(f"blk.{layer}.{part}.weight", f"{stored}.weight", shape, permuted)
            if part in biases:
                yield Expected(f"blk.{layer}.{part}.bias", f"{stored}.bias", shape[:1], permuted)
    yield Expected("output_norm.weight", f"{names.norm}.weight", (hidden,))


def _biases(config: Config, family: Family) -> set[str]:
    """The parts of a layer that have biases, by the family or by config.json."""
    biases = {"attn_q", "attn_k", "attn_v"} if family.qkv_bias else set()
    if "attention_bias" in family.settings and config.flag("attention_bias"):
        biases |= {"attn_q", "attn_k", "attn_v", "attn_output"}
    if "mlp_bias" in family.settings and config.flag("mlp_bias"):
        biases |= {"ffn_gate", "ffn_up", "ffn_down"}
    return biases
