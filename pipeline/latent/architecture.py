"""How latent attention is written for llama.cpp's `deepseek2` (src/models/deepseek2.cpp), dense layers only.

`deepseek2` puts an RMS norm on the latent, whose epsilon is that of all norms. It is neutralised: epsilon is made so
large beside the latent's mean square that the norm divides by a constant. The other norms must not notice, so the whole
residual stream grows with the epsilon's root, RESIDUAL_SCALE: what writes to it (token embeddings, attn_output,
ffn_down) is multiplied, and if the embeddings are the output matrix as well, the output norm's weights are divided.
"""

from collections.abc import Iterator

import numpy as np
from gguf import GGUFValueType

from pipeline.gguf_file.metadata import MetadataEntry, metadata_entry
from pipeline.gguf_file.reader import GGUFModel
from pipeline.gguf_file.writer import TensorDeclaration
from pipeline.latent.new_types import new_types
from pipeline.latent.plan import CacheLayout
from pipeline.latent.scaled import scaled_type
from pipeline.latent.source import LatentSource
from pipeline.latent.source_rope import FACTORS
from pipeline.latent.weights import LatentWeights

ARCHITECTURE = "deepseek2"
RESIDUAL_SCALE = 8192.0  # a power of two: exact
LATENT_SHARE = 1e-5  # of epsilon: the mean square of the latent before its norm
GROWING = ("token_embd.weight", "attn_output.weight", "ffn_down.weight")


UP, GATE = "ffn_up.weight", "ffn_gate.weight"


def gate_beside(up: str) -> str:
    """The name of the gate beside `ffn_up` of a layer."""
    return up.removesuffix(UP) + GATE


def grows(name: str) -> bool:
    """Whether a tensor writes to the residual stream."""
    return name.endswith(GROWING)


def shrinks(model: GGUFModel, name: str) -> bool:
    """Whether a tensor undoes the growth of the embeddings where they are the output matrix, too."""
    return name == "output_norm.weight" and "output.weight" not in model.tensors


def latent_metadata(model: GGUFModel, source: LatentSource, layout: CacheLayout) -> list[MetadataEntry]:
    """The converted model's metadata without provenance: general and tokenizer entries stay as they are."""
    rope = source.slots.first(layout.pairs).rope
    numbers = {
        "block_count": len(source.layers),
        "context_length": model.hyperparameter("context_length", 0),
        "embedding_length": source.width,
        "feed_forward_length": source.feed_forward,
        "vocab_size": model.tensors["token_embd.weight"].shape[0],
        "attention.head_count": source.heads,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 0,
        "attention.kv_lora_rank": layout.rank,
        "attention.key_length": layout.cached_numbers,
        "attention.value_length": layout.rank,
        "attention.key_length_mla": layout.features + 2 * layout.pairs,
        "attention.value_length_mla": source.head_size,
        "rope.dimension_count": 2 * layout.pairs,
        "leading_dense_block_count": len(source.layers),
        "expert_count": 0,
        "expert_used_count": 0,
        "expert_shared_count": 0,
        "expert_feed_forward_length": 0,
    }
    floats = {
        "attention.layer_norm_rms_epsilon": source.epsilon * RESIDUAL_SCALE**2,
        "rope.freq_base": rope.base,
    }
    if rope.yarn or rope.factor != 1:
        floats["rope.scaling.factor"] = rope.factor
        floats["rope.scaling.attn_factor"] = 1 / rope.magnitude  # so that nothing is multiplied for YaRN's sake
    if rope.yarn:
        numbers["rope.scaling.original_context_length"] = rope.yarn.context
    kept = [e for key, e in model.metadata.items() if not key.startswith((f"{model.architecture}.", "surgery."))]
    kept = [e for e in kept if e.key != "general.architecture"]
    own = [metadata_entry(f"{ARCHITECTURE}.{key}", n, GGUFValueType.UINT32) for key, n in numbers.items()]
    own += [metadata_entry(f"{ARCHITECTURE}.{key}", x, GGUFValueType.FLOAT32) for key, x in floats.items()]
    if rope.yarn or rope.factor != 1:
        own.append(metadata_entry(f"{ARCHITECTURE}.rope.scaling.type", "yarn" if rope.yarn else "linear"))
    return [metadata_entry("general.architecture", ARCHITECTURE), *kept, *own]


def declare_tensors(
    model: GGUFModel, source: LatentSource, layout: CacheLayout, outtype: str
) -> tuple[list[TensorDeclaration], dict[str, TensorDeclaration]]:
    """The tensors of the file, those that stay first, and by name the new ones among them."""
    replaced = {projection.tensor for roles in source.layers.values() for projection in roles.values()}
    stay = []
    for t in model.tensors.values():
        if source.kind.gate_up and t.name.endswith(UP):
            halves = (t.shape[0] // 2, *t.shape[1:])
            stay += [TensorDeclaration(name, halves, t.type) for name in (gate_beside(t.name), t.name)]
        elif t.name not in replaced and t.name != FACTORS:
            stay.append(TensorDeclaration(t.name, t.shape, scaled_type(t.type) if grows(t.name) else t.type))
    new = {}
    nope, rope = layout.features, 2 * layout.pairs
    for layer, roles in source.layers.items():
        shapes = {
            "attn_q": (source.heads * (nope + rope), source.width),
            "attn_kv_a_mqa": (layout.cached_numbers, source.width),
            "attn_kv_a_norm": (layout.rank,),
            "attn_k_b": (source.heads, layout.rank, nope),
            "attn_v_b": (source.heads, source.head_size, layout.rank),
        }
        types = new_types({role: model.tensors[each.tensor] for role, each in roles.items()}, shapes, outtype)
        for name, shape in shapes.items():
            full = f"blk.{layer}.{name}.weight"
            new[full] = TensorDeclaration(full, shape, types[name])
    return [*stay, *new.values()], new


def layer_tensors(
    source: LatentSource,
    queries: np.ndarray,
    narrow: np.ndarray,
    latent_query: np.ndarray,
    weights: LatentWeights,
    latent_square: float,
) -> Iterator[tuple[str, np.ndarray]]:
    """Each new tensor of a layer by its name in the layer, float32.

    queries: the source's q, (heads, b, d); narrow, latent_query: what `narrow_queries` makes of them; latent_square: the
    mean square of the latent over the calibration text
    """
    epsilon = source.epsilon * RESIDUAL_SCALE**2
    before_norm = np.sqrt(LATENT_SHARE * epsilon / latent_square)
    after_norm = np.sqrt(epsilon * (1 + LATENT_SHARE)) / before_norm
    rotary = np.einsum("hbp,hbd->hpd", weights.rotary_query, queries)
    key_length = narrow.shape[1] + len(weights.rotary_key)
    # llama.cpp divides scores by the root of key_length_mla, the source by that of its head size
    scale = np.sqrt(key_length / source.head_size) / source.slots.rope.score_scale
    q = np.concatenate([narrow, rotary], axis=1) * scale
    tensors = {
        "attn_q": q.reshape(-1, q.shape[-1]),
        "attn_kv_a_mqa": np.vstack([before_norm * weights.latent, weights.rotary_key]),
        "attn_kv_a_norm": np.full(len(weights.latent), after_norm),
        "attn_k_b": latent_query.transpose(0, 2, 1),
        "attn_v_b": weights.value,
    }
    for name, values in tensors.items():
        yield name, np.ascontiguousarray(values, np.float32)
