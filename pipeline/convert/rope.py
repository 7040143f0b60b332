"""Rotary position embeddings: a config's base and scaling, and the factors that GGUF stores for Llama 3."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.convert.config import Config
from pipeline.convert.families import Family
from pipeline.errors import SurgeryError

# "dynamic" computes as "default" up to the context length that the model was made for, and llama.cpp goes no further.
SCALINGS = ("default", "dynamic", "linear", "yarn", "llama3")
DEFAULT_BASE = 10000.0


@dataclass(frozen=True)
class Rope:
    """`base` is rope_theta, `local_base` that of sliding-window layers, if they have their own; `scaling` as in config."""

    base: float
    local_base: float | None
    kind: str
    scaling: dict[str, Any]


def read_rope(config: Config, family: Family) -> Rope:
    """What config.json says of RoPE, as transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters) wrote it.

    Raises SurgeryError for a scaling that llama.cpp does not compute for this family.
    """
    both = config.table("rope_parameters")
    scaling = both.get("full_attention", both) or config.table("rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALINGS or (kind == "llama3" and family.architecture != "llama"):
        raise SurgeryError(
            f"{config.path}: RoPE scaling {kind} is not supported for {family.architecture}; supported are {', '.join(SCALINGS)}"
        )
    default = 1e6 if family.architecture == "gemma3" else DEFAULT_BASE
    base = float(scaling.get("rope_theta") or config.number("rope_theta", default))
    local = both.get("sliding_attention", {}).get("rope_theta", config.get("rope_local_base_freq"))
    return Rope(base, float(local) if local else None, kind, scaling)


def llama3_factors(config: Config, rope: Rope) -> np.ndarray:
    """By what each of head_dim / 2 rotations is slowed down: float32, as GGUF's `rope_freqs.weight` holds it.

    Formula: transformers, modeling_rope_utils.py, `_compute_llama3_parameters`: wavelengths beyond the context that
    the model was made for are divided by `factor`, short ones are left alone, those between are interpolated.
    """
    scaling = rope.scaling
    try:
        factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        context = float(scaling["original_max_position_embeddings"])
    except (KeyError, TypeError, ValueError):
        raise SurgeryError(
            f"{config.path}: rope_scaling of type llama3 needs the numbers factor, low_freq_factor, high_freq_factor"
            " and original_max_position_embeddings"
        ) from None
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    wavelengths = 2 * np.pi * rope.base**exponents
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelengths < context / high, 1.0, np.where(wavelengths > context / low, factor, between))
    return factors.astype(np.float32)
