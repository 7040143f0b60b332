"""Metadata of a GGUF file: key-value entries that keep their own bytes, and how such bytes are made and read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. An entry's bytes are copied, never made again,
so what surgery leaves alone stays byte-identical.
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gguf import GGUFValueType

SCALAR_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}


class Cursor:
    """Reads little-endian values from a buffer, front to back, and never past its end.

    `buffer` is a memory map or bytes, `position` an offset in bytes. A read past the end raises EOFError.
    """

    def __init__(self, buffer: Any, position: int = 0) -> None:
        self.buffer = buffer
        self.position = position
        self.end = len(buffer)

    def skip(self, size: int) -> None:
        if size > self.end - self.position:
            raise EOFError
        self.position += size

    def number(self, code: str) -> Any:
        start = self.position
        self.skip(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self.buffer, start)[0]

    def numbers(self, code: str, count: int) -> list[Any]:
        start = self.position
        self.skip(struct.calcsize("<" + code) * count)
        return list(struct.unpack_from(f"<{count}{code}", self.buffer, start))

    def raw_string(self) -> bytes:
        size = self.number("Q")
        start = self.position
        self.skip(size)
        return bytes(self.buffer[start : self.position])

    def string(self) -> str:
        return self.raw_string().decode("utf-8", errors="replace")

    def value_type(self) -> GGUFValueType:
        number = self.number("I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise ValueError(f"value type {number}, which GGUF does not define") from None

    def skip_value(self, kind: GGUFValueType, depth: int = 0) -> None:
        """Move past one value without building it. Raises ValueError for arrays nested more than once."""
        if kind == GGUFValueType.STRING:
            self.skip(self.number("Q"))
        elif kind != GGUFValueType.ARRAY:
            self.skip(struct.calcsize("<" + SCALAR_FORMATS[kind]))
        elif depth > 1:
            raise ValueError("arrays nested too deeply")
        else:
            item, count = self.value_type(), self.number("Q")
            if item in SCALAR_FORMATS:
                self.skip(struct.calcsize("<" + SCALAR_FORMATS[item]) * count)
            elif count > (self.end - self.position) // 8:  # each string or array takes 8 bytes at the least
                raise EOFError
            elif item == GGUFValueType.STRING:
                self._skip_strings(count)
            else:
                for _ in range(count):
                    self.skip_value(item, depth + 1)

    def _skip_strings(self, count: int) -> None:
        """Move past `count` strings: the longest loop in reading a model (its vocabulary), hence spelled out."""
        unpack, buffer, position, end = struct.Struct("<Q").unpack_from, self.buffer, self.position, self.end
        for _ in range(count):
            if end - position < 8:
                raise EOFError
            position += 8 + unpack(buffer, position)[0]
        self.position = position
        self.skip(0 if position <= end else 1 + end)

    def value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind != GGUFValueType.ARRAY:
            return self.number(SCALAR_FORMATS[kind])
        item, count = self.value_type(), self.number("Q")
        if item in SCALAR_FORMATS:
            return self.numbers(SCALAR_FORMATS[item], count)
        return [self.value(item) for _ in range(count)]


@dataclass(frozen=True)
class MetadataEntry:
    """One key with its type, and `raw`: its bytes as they stand in the file (key, type and value)."""

    key: str
    kind: GGUFValueType
    raw: bytes

    @cached_property
    def value(self) -> Any:
        """The value as a Python number, bool, str or list; decoded when first asked for."""
        cursor = Cursor(self.raw)
        cursor.raw_string()
        return cursor.value(cursor.value_type())


def metadata_entry(key: str, value: Any, kind: GGUFValueType | None = None) -> MetadataEntry:
    """Encode `value` as `kind`, a list as an array of `kind`.

    Without `kind`: str, bool, int (unsigned, 32 bits), float (64 bits), or a list of one of these that is not empty.
    """
    items = value if isinstance(value, list) else [value]
    kind = kind if kind is not None else _kind_of(items[0])
    if kind == GGUFValueType.STRING:
        payload = b"".join(map(_encode_string, items))
    else:
        payload = struct.pack(f"<{len(items)}{SCALAR_FORMATS[kind]}", *items)
    if isinstance(value, list):
        payload = struct.pack("<IQ", kind, len(items)) + payload
        kind = GGUFValueType.ARRAY
    return MetadataEntry(key, kind, _encode_string(key) + struct.pack("<I", kind) + payload)


def _kind_of(value: Any) -> GGUFValueType:
    match value:
        case bool():
            return GGUFValueType.BOOL
        case int():
            return GGUFValueType.UINT32
        case float():
            return GGUFValueType.FLOAT64
        case str():
            return GGUFValueType.STRING
    raise TypeError(f"GGUF metadata cannot hold {value!r}")


def _encode_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
