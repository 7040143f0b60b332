"""A checkpoint's JSON files, read with errors that name the file and the key."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import SurgeryError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises SurgeryError when it cannot be read or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SurgeryError(f"{path}: is not valid JSON ({error}); get it anew") from None
    if not isinstance(value, dict):
        raise SurgeryError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one when there is no such file."""
    return read_json(path) if path.is_file() else {}


@dataclass(frozen=True)
class Config:
    """A checkpoint's config.json."""

    path: Path
    values: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer. Raises SurgeryError when it is missing without a default, or something else."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise SurgeryError(f"{self.path}: {key} is {value!r}; expected a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, as `integer`."""
        value = self.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            raise SurgeryError(f"{self.path}: {key} is {value!r}; expected a positive number")
        return float(value)

    def table(self, key: str) -> dict[str, Any]:
        """A JSON object, an empty one when it is missing. Raises SurgeryError for anything else."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise SurgeryError(f"{self.path}: {key} is {value!r}; expected a JSON object")
        return value

    @property
    def heads(self) -> int:
        return self.integer("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        return self.integer("num_key_value_heads", self.heads)

    @property
    def head_dim(self) -> int:
        return self.integer("head_dim", self.integer("hidden_size") // self.heads)


def read_config(folder: Path) -> Config:
    path = folder / "config.json"
    return Config(path, read_json(path))
