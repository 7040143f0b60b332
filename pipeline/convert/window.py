"""Sliding windows: which layers have one, and what of it GGUF can say."""

from pipeline.convert.config import Config, shown
from pipeline.convert.families import Family
from pipeline.errors import SurgeryError

SLIDING, FULL = "sliding_attention", "full_attention"


def sliding_layers(config: Config, family: Family) -> list[bool]:
    """Whether each layer sees a sliding window only, as transformers' classes decide it.

    Raises SurgeryError for layers of other kinds.
    """
    count = config.layers
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != count or any(kind not in (SLIDING, FULL) for kind in types):
            raise SurgeryError(
                f"{config.path}: layer_types is {shown(types)}; expected {SLIDING} or {FULL} for each of {count} layers"
            )
        return [kind == SLIDING for kind in types]
    if family.sliding_pattern:
        every = family.sliding_pattern
        if family.architecture == "gemma3":
            every = config.integer("sliding_window_pattern", every)
        return [number % every != 0 for number in range(1, count + 1)]
    if config.get("sliding_window") is None:
        return [False] * count
    if "use_sliding_window" not in family.settings:
        return [True] * count
    first = config.values.get("max_window_layers", 28) if config.flag("use_sliding_window") else count
    if not isinstance(first, int):
        raise SurgeryError(f"{config.path}: max_window_layers is {shown(first)}; expected a whole number")
    return [number >= first for number in range(count)]


def context_length(config: Config, family: Family) -> int:
    """As many tokens as llama.cpp computes as transformers does: where it has no windows, not more than fit in one."""
    length = config.integer("max_position_embeddings")
    if family.sliding_pattern or not any(sliding_layers(config, family)):
        return length
    return min(length, config.integer("sliding_window"))
