"""What can be converted: a Llama whose every tensor and hyperparameter has a place in `deepseek2`."""

import re
from dataclasses import dataclass

from pipeline.attention import Projection, find_attention
from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel

DEFAULT_FREQUENCY_BASE = 10000.0
TENSORS = re.compile(
    r"token_embd\.weight|output_norm\.weight|output\.weight"
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
    "tensor_data_layout",
    "vocab_size",
}
HARMLESS = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "expert_count": 0, "expert_used_count": 0}
"""Hyperparameters that are no obstacle with these values."""


@dataclass(frozen=True)
class LatentSource:
    """The shape of a model that can be converted. `head_size` is that of q, k and v and all of it is rotated.

    context: tokens that it was made for, 0 if that is not known
    """

    heads: int
    kv_heads: int
    head_size: int
    width: int
    frequency_base: float
    epsilon: float
    context: int
    layers: dict[int, dict[str, Projection]]

    @property
    def cached_numbers(self) -> int:
        """Numbers cached per token and layer."""
        return 2 * self.kv_heads * self.head_size

    @property
    def pairs(self) -> int:
        """Pairs of a head's features that RoPE rotates: its frequencies."""
        return self.head_size // 2


def require_convertible(model: GGUFModel) -> LatentSource:
    """The shape of `model`. Raises SurgeryError naming the first thing that `deepseek2` has no place for."""
    if model.architecture != "llama":
        raise _refusal(model, f"is a {model.architecture or 'nameless'} model, and only Llamas can be converted")
    for name in model.tensors:
        if not TENSORS.fullmatch(name):
            raise _refusal(model, f"has a tensor {name}, {_what_it_is(name)}")
    for key in model.metadata:
        name = key.removeprefix("llama.")
        if name != key and name not in HYPERPARAMETERS and model.get(key) != HARMLESS.get(name, ...):
            raise _refusal(model, f"has {key} = {model.get(key)}")
    attention = find_attention(model)
    if attention.skipped:
        raise _refusal(model, f"has no attention in layer {min(attention.skipped)}")
    width, heads = (model.hyperparameter(name) for name in ("embedding_length", "attention.head_count"))
    kv_heads = model.hyperparameter("attention.head_count_kv", heads)
    if not all(isinstance(count, int) and count > 0 for count in (width, heads, kv_heads)) or heads % kv_heads:
        raise _refusal(model, f"has {heads} query and {kv_heads} key/value heads")
    size = model.hyperparameter("attention.key_length", width // heads)
    others = {
        "attention.value_length": model.hyperparameter("attention.value_length", width // heads),
        "rope.dimension_count": model.hyperparameter("rope.dimension_count", size),
    }
    for name, value in others.items():
        if value != size or size % 2:
            raise _refusal(model, f"has heads of {size} features and llama.{name} = {value}")
    for layer, roles in attention.layers.items():
        for role, rows in (("q", heads * size), ("k", kv_heads * size), ("v", kv_heads * size)):
            if (roles[role].rows, roles[role].columns) != (rows, width):
                raise _refusal(
                    model, f"has {roles[role].rows} x {roles[role].columns} numbers in {role} of layer {layer}"
                )
    base = float(model.hyperparameter("rope.freq_base", DEFAULT_FREQUENCY_BASE))
    epsilon = float(model.hyperparameter("attention.layer_norm_rms_epsilon", 0.0))
    if base <= 0 or epsilon <= 0:
        raise _refusal(model, f"has a base of RoPE of {base:g} and an epsilon of its norms of {epsilon:g}")
    context = int(model.hyperparameter("context_length", 0))
    return LatentSource(heads, kv_heads, size, width, base, epsilon, context, attention.layers)


def _what_it_is(name: str) -> str:
    if name.startswith("rope_f"):
        return "frequencies of its own for RoPE"
    if name.endswith(".bias"):
        return "a bias"
    if "exp" in name:
        return "a mixture of experts"
    return "which a Llama's attention does not need"


def _refusal(model: GGUFModel, what: str) -> SurgeryError:
    return SurgeryError(
        f"{model.path}: {what}; llama.cpp's deepseek2 has no place for it: convert a plain Llama, such as SmolLM2"
        " or TinyLlama, or leave the model and use `cache_type_k` and `cache_type_v`"
    )
