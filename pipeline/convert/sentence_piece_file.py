"""What a tokenizer.model says of itself: SentencePiece's settings, which its package does not tell.

Format: sentencepiece_model.proto of github.com/google/sentencepiece, in protocol buffers' wire format.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SurgeryError

VARINT, LONG, BYTES, SHORT = 0, 1, 2, 5  # wire types
BPE, MODEL_TYPES = 2, {1: "Unigram", 2: "BPE", 3: "Word", 4: "Char"}
USER_DEFINED = 4  # of a piece


@dataclass(frozen=True)
class Settings:
    """Those that decide how a text becomes pieces. `adds_space`: a space is put before the text."""

    model_type: str
    byte_fallback: bool
    normalizer: str
    adds_space: bool
    removes_spaces: bool
    escapes_spaces: bool
    space_as_suffix: bool
    user_defined: list[str]


def read_settings(path: Path) -> Settings:
    """The settings of a tokenizer.model. Raises SurgeryError when it is no such file."""
    try:
        data = path.read_bytes()
        trainer: dict[int, bytes | int] = {}
        normalizer: dict[int, bytes | int] = {}
        user_defined = []
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(_message(value)))
                if piece.get(3) == USER_DEFINED:
                    user_defined.append(_message(piece[1]).decode())
            elif number == 2:
                trainer |= dict(_fields(_message(value)))
            elif number == 3:
                normalizer |= dict(_fields(_message(value)))
        name = _message(normalizer.get(1, b"")).decode()
    except (ValueError, IndexError, KeyError):
        raise SurgeryError(f"{path}: is not a SentencePiece model; get it anew") from None
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read: {error.strerror}") from None
    changes_text = bool(normalizer.get(2)) or bool(normalizer.get(6))
    return Settings(
        model_type=MODEL_TYPES.get(_number(trainer.get(3, 1)), "unknown"),
        byte_fallback=bool(trainer.get(35, 0)),
        normalizer=(name or "of its own") if changes_text else "",
        adds_space=bool(normalizer.get(3, 1)),
        removes_spaces=bool(normalizer.get(4, 1)),
        escapes_spaces=bool(normalizer.get(5, 1)),
        space_as_suffix=bool(trainer.get(24, 0)),
        user_defined=user_defined,
    )


def _number(value: bytes | int) -> int:
    if not isinstance(value, int):
        raise ValueError("a number was expected")
    return value


def _message(value: bytes | int) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("bytes were expected")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a message: their numbers and values. Raises ValueError or IndexError for what is none."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == VARINT:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        size = {LONG: 8, SHORT: 4}.get(kind, -1)
        if kind == BYTES:
            size, position = _varint(data, position)
        if size < 0 or position + size > len(data):
            raise ValueError("not a message")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError("not a number")
