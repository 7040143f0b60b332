"""A checkpoint's JSON files, read with errors that name the file and the key."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import SurgeryError

LARGEST_FILE = 256 * 2**20  # bytes; tokenizer.json of the largest vocabularies takes a tenth
LARGEST_INTEGER = 2**31 - 1  # llama.cpp keeps sizes and positions in 32 bits, with a sign in places
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-37, 3e38  # what float32, in which GGUF keeps them, holds without loss of digits


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises SurgeryError when it cannot be read, is damaged, or holds something else."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise SurgeryError(f"{path}: is larger than {LARGEST_FILE // 2**20} MB; no such file of a model is")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SurgeryError(f"{path}: is not valid JSON ({error}); get it anew") from None
    return parse_object(path, text)


def parse_object(path: Path, text: str) -> dict[str, Any]:
    """`text`, of the file `path`, as a JSON object. Raises SurgeryError for other values, also for a key given twice."""
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _without_repetition(path, pairs))
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError:
        raise SurgeryError(f"{path}: is nested too deeply for a file of a model; get it anew") from None
    except ValueError as error:
        raise SurgeryError(f"{path}: is not valid JSON ({error}); get it anew") from None
    if not isinstance(value, dict):
        raise SurgeryError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _without_repetition(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if seen.setdefault(key, value) != value:
                raise SurgeryError(f"{path}: {shown(key)} is there twice, as {shown(seen[key])} and as {shown(value)}")
    return found


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one when there is no such file."""
    return read_json(path) if path.is_file() else {}


def shown(value: Any) -> str:
    """A value of a file in a message: on one line, without control characters, no longer than a line is."""
    text = repr(value[:200] if isinstance(value, (str, list)) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def words(text: str) -> frozenset[str]:
    """The words of `text`: how lists of keys are written here."""
    return frozenset(text.split())


@dataclass(frozen=True)
class Config:
    """A checkpoint's config.json, or an object in it. `values` includes the defaults of the model's family."""

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer below 2^31. Raises SurgeryError when it is missing without a default, or something else."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST_INTEGER:
            raise SurgeryError(
                f"{self.path}: {key} is {shown(value)}; expected a positive whole number below {LARGEST_INTEGER:,}"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number that float32 holds, as `integer`."""
        value = self.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not self._fits(value):
            raise SurgeryError(
                f"{self.path}: {key} is {shown(value)}; expected a positive number between {SMALLEST_NUMBER} and {LARGEST_NUMBER}"
            )
        return float(value)

    @staticmethod
    def _fits(value: float) -> bool:
        return SMALLEST_NUMBER <= value <= LARGEST_NUMBER  # false for NaN, too

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false. Raises SurgeryError for anything else."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise SurgeryError(f"{self.path}: {key} is {shown(value)}; expected true or false")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """A JSON object, an empty one when it is missing. Raises SurgeryError for anything else."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise SurgeryError(f"{self.path}: {key} is {shown(value)}; expected a JSON object")
        return value

    @property
    def heads(self) -> int:
        return self.integer("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        return self.integer("num_key_value_heads", self.heads)

    @property
    def layers(self) -> int:
        return self.integer("num_hidden_layers")

    @property
    def head_dim(self) -> int:
        return self.integer("head_dim", self.integer("hidden_size") // self.heads)


def read_config(folder: Path) -> Config:
    path = folder / "config.json"
    return Config(path, read_json(path))
