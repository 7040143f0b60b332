"""Rotary position embeddings: a config's base and scaling, and the factors that GGUF stores for Llama 3."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.convert.config import Config, shown
from pipeline.convert.families import CONVERTER, Family
from pipeline.errors import SurgeryError

DEFAULT_BASE = 10000.0
# type -> what a scaling of it may say, besides its type and base. "dynamic" computes as "default" up to the context
# length that the model was made for, and llama.cpp goes no further.
KEYS = {
    "default": {"factor"},
    "dynamic": {"factor", "original_max_position_embeddings"},
    "linear": {"factor"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    },
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
}  # fmt: skip
# Beside alpha, which is a factor of the base, and with it without effect in transformers.
HUNYUAN_KEYS = {"alpha", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
# For the families whose YaRN's numbers llama.cpp reads: by what queries grow with the logarithm of how often the original
# context fits into their position, and what transformers takes from config.json itself.
QUERY_GROWTH = "llama_4_scaling_beta"
YARN_NUMBERS = {QUERY_GROWTH, "max_position_embeddings"}
# What llama.cpp takes for granted in a model with YaRN of all others.
FIXED = {"beta_fast": 32, "beta_slow": 1, "truncate": True}


@dataclass(frozen=True)
class Rope:
    """`base` is rope_theta, `local_base` that of sliding-window layers, if they have their own.

    `factor` divides positions; `attention_factor` multiplies what llama.cpp scales attention by under YaRN, 1 as a rule,
    with `log_multiplier`, 0 for none, known to it; `original_context` is in tokens, `dimensions` are those of a head that
    are rotated, and `scaling` is config.json's own object.
    """

    base: float
    local_base: float | None
    kind: str
    scaling: Config
    factor: float
    attention_factor: float
    log_multiplier: float
    original_context: int
    dimensions: int


def read_rope(config: Config, family: Family) -> Rope:
    """What config.json says of RoPE, as transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters) wrote it.

    Raises SurgeryError for a scaling that llama.cpp does not compute for this family.
    """
    both, older = config.table("rope_parameters"), config.table("rope_scaling")
    if both and older and both != older:
        raise SurgeryError(f"{config.path}: rope_parameters and rope_scaling say different things; keep one of them")
    if family.architecture == "gemma3" and both.keys() - {"full_attention", "sliding_attention"}:
        raise SurgeryError(
            f"{config.path}: rope_parameters is {shown(both)}; expected those of full_attention and sliding_attention"
        )
    both = both or older
    nested = family.architecture == "gemma3" and "full_attention" in both
    local = _local_base(config, both) if family.architecture == "gemma3" else None
    scaling = Config(config.path, Config(config.path, both).table("full_attention") if nested else both)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if not isinstance(kind, str) or scaling.get("type", kind) != kind:
        raise SurgeryError(
            f"{config.path}: RoPE scaling has rope_type {shown(kind)} and type {shown(scaling.get('type'))}; expected one"
        )
    if kind not in family.rope_types:
        raise SurgeryError(
            f"{config.path}: RoPE scaling {kind} is not supported for {family.architecture}; supported are"
            f" {', '.join(family.rope_types)}; {CONVERTER}"
        )
    base = scaling.number("rope_theta", config.number("rope_theta", DEFAULT_BASE))
    if family.architecture == "hunyuan-dense" and kind == "dynamic" and scaling.get("alpha"):
        base *= scaling.number("alpha") ** (config.head_dim / (config.head_dim - 2))  # transformers' ntk_alpha
        kind = "default"
    _check_keys(scaling, kind, family)
    factor = _factor(config, scaling, kind)
    both_scales = scaling.get("mscale") and scaling.get("mscale_all_dim")
    multiplier = scaling.number("mscale_all_dim") if family.yarn_numbers and both_scales else 0.0
    attention_factor = _attention_factor(scaling, kind, factor, multiplier)
    dimensions = _dimensions(config, scaling) if family.partial_rotary else config.head_dim
    original = _original(config, scaling)
    return Rope(base, local, kind, scaling, factor, attention_factor, multiplier, original, dimensions)


def _dimensions(config: Config, scaling: Config) -> int:
    share = scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dimensions = int(config.head_dim * share)
    if share > 1 or dimensions < 2 or dimensions % 2:
        raise SurgeryError(
            f"{config.path}: partial_rotary_factor is {share:g}, {dimensions} of a head's {config.head_dim} dimensions;"
            " expected an even number of them"
        )
    return dimensions


def _check_keys(scaling: Config, kind: str, family: Family) -> None:
    known = KEYS[kind] | {"rope_type", "type", "rope_theta"}
    if family.architecture == "hunyuan-dense":
        known |= HUNYUAN_KEYS
    if family.yarn_numbers:
        known |= YARN_NUMBERS
    for key, value in scaling.values.items():
        if value is None or key in known:
            continue
        if key == "partial_rotary_factor" and (value == 1 or family.partial_rotary):
            continue
        raise SurgeryError(f"{scaling.path}: RoPE scaling {kind} with {key} {shown(value)} is not supported")
    for key, computed in FIXED.items():
        if family.yarn_numbers and key != "truncate":
            continue
        if kind == "yarn" and scaling.get(key, computed) != computed:
            raise SurgeryError(
                f"{scaling.path}: RoPE scaling yarn with {key} {shown(scaling.get(key))}; llama.cpp computes with {computed}"
            )


def _original(config: Config, scaling: Config) -> int:
    """Where both stand, transformers goes by config.json's own, not the scaling's."""
    inner = scaling.integer("original_max_position_embeddings", config.integer("max_position_embeddings"))
    return config.integer("original_max_position_embeddings", inner)


def _factor(config: Config, scaling: Config, kind: str) -> float:
    if kind not in ("linear", "yarn"):
        return 1.0
    if kind == "yarn" and scaling.get("factor") is None:
        return config.integer("max_position_embeddings") / _original(config, scaling)
    return scaling.number("factor")


def _attention_factor(scaling: Config, kind: str, factor: float, log_multiplier: float) -> float:
    """What llama.cpp's own factor under YaRN is multiplied by to give transformers'.

    Its own is 1 + 0.1 ln(factor), divided by 1 + 0.1 log_multiplier ln(factor).
    Formula: transformers, modeling_rope_utils.py, `_compute_yarn_parameters`.
    """
    if kind != "yarn":
        return 1.0

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if factor < 1:
        raise SurgeryError(f"{scaling.path}: RoPE scaling yarn with factor {factor:g}; expected 1 or more")
    if scaling.get("attention_factor") is not None:
        wanted = scaling.number("attention_factor")
    elif scaling.get("mscale") and scaling.get("mscale_all_dim"):
        wanted = magnitude(scaling.number("mscale")) / magnitude(scaling.number("mscale_all_dim"))
    else:
        return 1.0
    return wanted * magnitude(log_multiplier) / magnitude(1.0)


def _local_base(config: Config, both: dict[str, Any]) -> float | None:
    """The base of sliding-window layers, where it is one of their own. Raises SurgeryError where they scale, too."""
    local = Config(config.path, Config(config.path, both).table("sliding_attention"))
    if local.get("rope_type", "default") != "default" or local.values.keys() - {"rope_type", "rope_theta"}:
        raise SurgeryError(
            f"{config.path}: RoPE of sliding_attention is {shown(local.values)}; llama.cpp computes no scaling there"
        )
    if "rope_local_base_freq" in config.values or local.values:
        return local.number("rope_theta", config.number("rope_local_base_freq", DEFAULT_BASE))
    return None


def llama3_factors(config: Config, rope: Rope) -> np.ndarray:
    """By what each of head_dim / 2 rotations is slowed down: float32, as GGUF's `rope_freqs.weight` holds it.

    Formula: transformers, modeling_rope_utils.py, `_compute_llama3_parameters`: wavelengths beyond the context that
    the model was made for are divided by `factor`, short ones are left alone, those between are interpolated.
    """
    try:
        factor, low, high = (rope.scaling.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    except SurgeryError:
        raise SurgeryError(
            f"{config.path}: rope_scaling of type llama3 needs the numbers factor, low_freq_factor, high_freq_factor"
            " and original_max_position_embeddings"
        ) from None
    if low >= high:
        raise SurgeryError(f"{config.path}: low_freq_factor {low:g} is not below high_freq_factor {high:g}")
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    wavelengths = 2 * np.pi * rope.base**exponents
    smooth = (rope.original_context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    short, long = wavelengths < rope.original_context / high, wavelengths > rope.original_context / low
    return np.where(short, 1.0, np.where(long, factor, between)).astype(np.float32)
