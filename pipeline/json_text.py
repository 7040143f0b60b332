"""Results as JSON: made here and nowhere else, whatever command or report writes them, as every reader takes it."""

import hashlib
import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

SCHEMA = 2
"""Changes when a name changes its meaning or is gone. 2: errors are over chunks, `.._se_tokens` over tokens; `texts`."""


def as_json(result: Any) -> dict[str, Any]:
    """A result, a dataclass, as one JSON object with its `schema`; null for what is not finite, which JSON cannot say."""
    return {"schema": SCHEMA, **plain(result)}


def plain(value: Any) -> Any:
    """`value` with dataclasses as objects, tuples as lists, paths as text, and None for what is not finite."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON text, made `plain`."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def sha256_of(value: Any) -> str:
    """SHA-256, in hex, of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
