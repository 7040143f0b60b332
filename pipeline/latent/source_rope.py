"""A model's RoPE, as llama.cpp makes it of hyperparameters and of `rope_freqs.weight`."""

from dataclasses import dataclass
from math import isfinite, log

import numpy as np

from pipeline.errors import SurgeryError
from pipeline.gguf_file.reader import GGUFModel
from pipeline.latent.rope import Rope, RotarySlots, Yarn, rotary_slots

DEFAULT_BASE = 10000.0
FACTORS = "rope_freqs.weight"
LARGEST_DEVIATION = 2e-4  # radians a token: 0.1 at a distance of 512
LARGEST_CONTEXT = 2**31 - 1


@dataclass(frozen=True)
class SourceRope:
    """`frequencies` (n,) in radians a token: the first 2 n features of each head are rotated.

    magnitude: what q and k are each multiplied with when they are rotated
    """

    frequencies: np.ndarray
    magnitude: float


def read_rope(model: GGUFModel, head_size: int, *, factors: bool) -> tuple[SourceRope, RotarySlots]:
    """The RoPE of `model`, and the slots that `deepseek2` has for it; `factors`: whether the architecture reads FACTORS.

    Raises SurgeryError for a RoPE that is not known, or that `deepseek2` does not come near.
    """
    rotated = model.hyperparameter("rope.dimension_count", head_size)
    base = _number(model, "rope.freq_base", DEFAULT_BASE)
    if type(rotated) is not int or rotated % 2 or not 2 <= rotated <= head_size:
        raise _refusal(model, f"rope.dimension_count is {rotated!r} of heads of {head_size} features")
    if base <= 1:
        raise _refusal(model, f"rope.freq_base is {base:g}")
    rope = _scaled(model, Rope(rotated // 2, base))
    tensor = model.read(FACTORS).astype(np.float64).ravel() if FACTORS in model.tensors else None
    if tensor is not None and not factors:
        raise _refusal(model, f"tensor {FACTORS} is not read by llama.cpp in a {model.architecture} model")
    if tensor is not None and (tensor.size != rope.pairs or not np.isfinite(tensor).all() or tensor.min() <= 0):
        raise _refusal(model, f"tensor {FACTORS} holds no {rope.pairs} factors above 0")
    slots = rotary_slots(rope, None if tensor is None else tuple(tensor.tolist()))
    if slots.deviation > LARGEST_DEVIATION:
        raise _refusal(
            model,
            f"the nearest frequencies that llama.cpp's deepseek2 can be told are off by up to {slots.deviation:.2g} radians"
            f" a token, and {LARGEST_DEVIATION:g} is the most that is accepted",
        )
    wanted = rope.frequencies() / (1.0 if tensor is None else tensor)
    magnitude = rope.magnitude * _number(model, "rope.scaling.attn_factor", 1.0)
    return SourceRope(wanted, magnitude), slots


def _scaled(model: GGUFModel, rope: Rope) -> Rope:
    """`rope` with the scaling that `model` asks for; llama.cpp takes a factor without a type for linear scaling."""
    kind = model.hyperparameter("rope.scaling.type", "linear")
    factor = _number(model, "rope.scaling.factor", 0.0) or _number(model, "rope.scale_linear", 0.0) or 1.0
    if kind not in ("none", "linear", "yarn"):
        raise _refusal(model, f"rope.scaling.type is {kind!r}; none, linear and yarn are known")
    if kind == "none":
        return rope
    if not 0 < factor < 1e6 or 1 + 0.1 * log(factor) <= 0:
        raise _refusal(model, f"rope.scaling.factor is {factor:g}")
    if kind == "linear":
        return Rope(rope.pairs, rope.base, factor)
    context = model.hyperparameter("rope.scaling.original_context_length", model.hyperparameter("context_length", 0))
    if type(context) is not int or not 1 <= context <= LARGEST_CONTEXT:
        raise _refusal(model, f"the original context of its YaRN is {context!r}")
    return Rope(rope.pairs, rope.base, factor, Yarn(context))


def _number(model: GGUFModel, name: str, default: float) -> float:
    value = model.hyperparameter(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise _refusal(model, f"{name} is {value!r}, no number")
    return float(value)


def _refusal(model: GGUFModel, what: str) -> SurgeryError:
    return SurgeryError(
        f"{model.path}: {what}; the positions of this model cannot be kept: leave it and use `cache_type_k` and `cache_type_v`"
    )
