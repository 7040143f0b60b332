"""What the hyperparameters of a model may be, by their names: before any sizes a loop, an array or a division."""

import math
from typing import Any

LARGEST = 2**31 - 1  # llama.cpp counts in 32 bits
MOST_LAYERS = 2**16  # entries of a list that has one for each
COUNTED = ("_count", "_length", "_rank", "_interval", "_window", "_kv", "_mla", "_swa", "_layers", "_size")
MEASURED = ("freq_base", "epsilon", ".factor", "attn_factor", "_scale")
BY_LAYER = ("head_count", "head_count_kv", "feed_forward_length", "recurrent_layers", "sliding_window_pattern")


def unexpected_value(name: str, value: Any) -> str | None:
    """What was expected instead of `value`; None if it can be what the hyperparameter `name` is.

    Counts and sizes are whole numbers from 0 to LARGEST, some a list of them or of booleans with one for each layer;
    bases, factors and epsilons are finite numbers. Other names may have any value.
    """
    if name.endswith(MEASURED):
        return None if _is_number(value) and math.isfinite(value) else "a finite number"
    if not name.endswith((*COUNTED, *BY_LAYER)):
        return None
    by_layer = name.endswith(BY_LAYER)
    if by_layer and isinstance(value, list) and len(value) <= MOST_LAYERS and all(map(_is_count, value)):
        return None
    if _is_count(value) and (by_layer or not isinstance(value, bool)):
        return None
    return f"a whole number from 0 to {LARGEST}" + (", or a list with one for each layer" if by_layer else "")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= LARGEST
