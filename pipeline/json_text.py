"""JSON as every reader takes it."""

import json
import math
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text, with null for every number that is not finite, which JSON has no name for."""
    return json.dumps(without_infinities(value), indent=indent, allow_nan=False)


def without_infinities(value: Any) -> Any:
    """`value` with None for every number that is not finite."""
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
