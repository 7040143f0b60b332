"""What can be converted: models whose every tensor and hyperparameter has a place in `deepseek2`.

That is the Llama block, RMS norms and SwiGLU, by whatever name llama.cpp has for it (src/models/ of the pinned version).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from pipeline.architectures import of_layer
from pipeline.attention import Projection, find_attention
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.latent.rope import EMPTY, RotarySlots
from pipeline.latent.source_rope import SourceRope, read_rope
from pipeline.layers import Layer

TENSORS = re.compile(
    r"token_embd\.weight|output_norm\.weight|output\.weight|rope_freqs\.weight"
    r"|blk\.\d+\.(attn_norm|attn_q|attn_k|attn_v|attn_qkv|attn_output|ffn_norm|ffn_gate|ffn_up|ffn_down)\.weight"
)
HYPERPARAMETERS = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "vocab_size",
}
HARMLESS: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "logit_scale": (1.0,),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}
"""Hyperparameters that are no obstacle with these values, which are those that llama.cpp computes with anyway."""


@dataclass(frozen=True)
class Kind:
    """How an architecture differs from Llama: how RoPE pairs features, and what else llama.cpp reads or does.

    neox: feature i is paired with i + half of those that are rotated; else 2 i with 2 i + 1
    without_rope: every so-manieth layer has no RoPE
    factors: whether it reads rope_freqs.weight; gate_up: whether gate and up are one tensor, ffn_up
    harmless: hyperparameters that it does not read, or reads as Llama's
    """

    neox: bool = False
    without_rope: int = 0
    factors: bool = False
    gate_up: bool = False
    harmless: frozenset[str] = field(default=frozenset())


KINDS = {
    "llama": Kind(factors=True),
    "deci": Kind(factors=True),
    "internlm2": Kind(),
    "phi3": Kind(neox=True, gate_up=True, harmless=frozenset({"attention.sliding_window"})),
    "qwen2": Kind(neox=True),
    "smollm3": Kind(without_rope=4),
}
"""llama.cpp's architectures that are a Llama block; phi3's sliding window is switched off there."""

REASONS = (
    (r"rope_factors_", "has RoPE factors that depend on the context's size (longrope)"),
    (r"\.bias$", "has biases: the latent is a linear map, and llama.cpp adds nothing to it"),
    (r"attn_[qk]_norm", "normalises q or k: each head's norm would be one more number to cache"),
    (r"attn_sinks", "has attention sinks"),
    (r"exp|ffn_gate_inp", "is a mixture of experts: beside its experts deepseek2 wants one that all tokens share"),
    (r"(post_attention|post_ffw|attn_post|ffn_post|attn_sub|ffn_sub)_norm", "has norms after its blocks"),
)
"""Tensors that cannot be kept, and why."""


@dataclass(frozen=True)
class LatentSource:
    """The shape of a model that can be converted. `head_size` is that of q, k and v.

    kv_heads: key/value heads by layer; slots: where `deepseek2` has the source's frequencies
    context: tokens that it was made for, 0 if that is not known
    """

    heads: int
    kv_heads: Mapping[int, int]
    head_size: int
    width: int
    feed_forward: int
    epsilon: float
    context: int
    kind: Kind
    rope: SourceRope
    slots: RotarySlots
    layers: dict[int, dict[str, Projection]]

    @property
    def cached_numbers(self) -> int:
        """Numbers cached per token and layer, of all layers the mean."""
        return 2 * self.head_size * sum(self.kv_heads.values()) // len(self.kv_heads)

    def all_numbers(self, slots: int) -> int:
        """How many numbers per token and layer keep all of the keys and values, with so many rotary `slots`."""
        return max(
            2 * (slots + heads * self.head_size - int(np.sum(self.held(layer, slots) != EMPTY)))
            for layer, heads in self.kv_heads.items()
        )

    @property
    def pairs(self) -> int:
        """Pairs of a head's features, rotated or not."""
        return self.head_size // 2

    def rotates(self, layer: int) -> bool:
        """Whether a layer has RoPE."""
        return not self.kind.without_rope or (layer + 1) % self.kind.without_rope != 0

    def frequencies(self, layer: int) -> np.ndarray:
        """By how many radians a token each pair of a head's features is rotated in a layer, (pairs,): 0 where it is not."""
        result = np.zeros(self.pairs)
        if self.rotates(layer):
            result[: len(self.rope.frequencies)] = self.rope.frequencies
        return result

    def held(self, layer: int, slots: int) -> np.ndarray:
        """The pair that is in each of the first `slots` of a layer, (slots,), or EMPTY."""
        held = np.array(self.slots.holds[:slots])
        return held if self.rotates(layer) else np.full_like(held, EMPTY)

    def score_scales(self, layer: int) -> np.ndarray:
        """What scores are multiplied with through each feature of q, (b,): the magnitude of rotated q and k."""
        result = np.ones(self.head_size, np.float32)
        if self.rotates(layer):
            result[: 2 * len(self.rope.frequencies)] = self.rope.magnitude**2
        return result

    def by_head(self, layer: Layer, role: str) -> np.ndarray:
        """A layer's q, k or v by head, float32 (heads, b, d); features of q and k that make a pair are neighbours."""
        rows = layer.rows(role).reshape(-1, self.head_size, self.width)
        if role == "v" or not self.kind.neox:
            return rows
        order, rotated = np.arange(self.head_size), 2 * len(self.rope.frequencies)
        order[:rotated] = order[:rotated].reshape(2, -1).T.ravel()
        return rows[:, order]


def require_convertible(model: GGUFModel) -> LatentSource:
    """The shape of `model`. Raises SurgeryError naming the first thing that `deepseek2` has no place for."""
    kind = KINDS.get(model.architecture)
    if kind is None:
        raise _refusal(
            model, f"is a {model.architecture or 'nameless'} model, and only {', '.join(KINDS)} can be converted"
        )
    _require_known(model, kind)
    attention = find_attention(model)
    if attention.skipped:
        raise _refusal(model, f"has no attention in layer {min(attention.skipped)}")
    width = model.hyperparameter("embedding_length")
    heads = _same_everywhere(model, "attention.head_count")
    feed_forward = _same_everywhere(model, "feed_forward_length")
    counts = model.hyperparameter("attention.head_count_kv", heads)
    kv_heads = {layer: of_layer(counts, layer) for layer in attention.layers}
    for count in (width, heads, *kv_heads.values()):
        if type(count) is not int or count < 1 or (count != width and heads % count):
            raise _refusal(model, f"has {heads} query and {count} key/value heads")
    size = model.hyperparameter("attention.key_length", width // heads)
    if model.hyperparameter("attention.value_length", width // heads) != size or size % 2:
        raise _refusal(model, f"has heads of {size} features and another number in v, or an odd one")
    for layer, roles in attention.layers.items():
        for role, rows in (("q", heads * size), ("k", kv_heads[layer] * size), ("v", kv_heads[layer] * size)):
            if role not in roles or (roles[role].rows, roles[role].columns) != (rows, width):
                raise _refusal(model, f"has no {rows} x {width} numbers in {role} of layer {layer}")
    epsilon = float(model.hyperparameter("attention.layer_norm_rms_epsilon", 0.0))
    if not 0 < epsilon < 1:
        raise _refusal(model, f"has an epsilon of its norms of {epsilon:g}")
    rope, slots = read_rope(model, size, factors=kind.factors)
    context = int(model.hyperparameter("context_length", 0))
    return LatentSource(
        heads, kv_heads, size, width, feed_forward, epsilon, context, kind, rope, slots, attention.layers
    )


def _require_known(model: GGUFModel, kind: Kind) -> None:
    """Raise SurgeryError at the first tensor or hyperparameter that is not known to have a place."""
    for name in model.tensors:
        if not TENSORS.fullmatch(name):
            why = next((why for pattern, why in REASONS if re.search(pattern, name)), "which a Llama does not have")
            raise _refusal(model, f"{why} (tensor {name})")
    for key in model.metadata:
        name = key.removeprefix(f"{model.architecture}.")
        if name != key and name not in HYPERPARAMETERS | kind.harmless and model.get(key) not in HARMLESS.get(name, ()):
            raise _refusal(model, f"has {key} = {model.get(key)}")


def _same_everywhere(model: GGUFModel, name: str) -> int:
    """A hyperparameter that is one number, or the same in each layer: `deepseek2` has one for all."""
    value = model.hyperparameter(name)
    if isinstance(value, list) and value and len(set(value)) == 1:
        value = value[0]
    if type(value) is not int or value < 1:
        raise _refusal(model, f"has {name} {str(value)[:60]}, of which deepseek2 has one for all layers")
    return value


def _refusal(model: GGUFModel, what: str) -> SurgeryError:
    return SurgeryError(
        f"{model.path}: {what}; llama.cpp's deepseek2 has no place for it: convert a plain Llama, such as SmolLM2"
        " or Llama 3, or leave the model and use `cache_type_k` and `cache_type_v`"
    )
