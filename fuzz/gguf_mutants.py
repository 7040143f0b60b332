"""Mutants of GGUF files: of their bytes, and of what they say, so that most still pass for files.

A mutant is made from a seed file and a random generator alone, so its number is enough to make it again.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from gguf import GGMLQuantizationType, GGUFValueType

from pipeline.gguf_file.metadata import SCALAR_FORMATS, MetadataEntry, metadata_entry
from pipeline.gguf_file.reader import DEFAULT_ALIGNMENT, NAME_ERRORS, align, read_part

WHOLE_NUMBERS = (
    0,
    1,
    2,
    3,
    5,
    7,
    31,
    33,
    64,
    255,
    1000,
    10**6,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**53,
    2**63,
    2**64 - 1,
)
FRACTIONS = (0.0, -0.0, -1.0, 1e-45, 1e-30, 0.5, 1e19, 3.4e38, 1e300, float("inf"), float("-inf"), float("nan"))
STRINGS = (
    "",
    "llama",
    "qwen2",
    "phi3",
    "bert",
    "deepseek2",
    "gpt2",
    "x" * 5000,
    "[/b]",
    "\x1b[2J",
    "\u202e",
    "{{ 1",
    "a\0b",
    "..",
    "%s",
)
LARGEST_ARRAY = 5000


@dataclass(frozen=True)
class Tensor:
    """A tensor as a file declares it, and its bytes."""

    name: bytes
    shape: tuple[int, ...]
    type: int
    data: bytes
    moved: int = 0  # bytes by which the header lies about its place


@dataclass(frozen=True)
class Parts:
    """What a GGUF file consists of."""

    metadata: tuple[MetadataEntry, ...]
    tensors: tuple[Tensor, ...]
    version: int = 3
    counts: tuple[int, int] = (0, 0)  # by which the header lies about how many tensors and entries there are

    def encode(self) -> bytes:
        """The file's bytes."""
        records, data, offset = [], [], 0
        for tensor in self.tensors:
            dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
            place = struct.pack("<IQ", tensor.type, (offset + tensor.moved) % 2**64)
            records.append(struct.pack("<Q", len(tensor.name)) + tensor.name + dims + place)
            data.append(tensor.data + bytes(-len(tensor.data) % DEFAULT_ALIGNMENT))
            offset += len(data[-1])
        numbers = (len(self.tensors) + self.counts[0]) % 2**64, (len(self.metadata) + self.counts[1]) % 2**64
        header = b"GGUF" + struct.pack("<IQQ", self.version, *numbers)
        header += b"".join(entry.raw for entry in self.metadata) + b"".join(records)
        return header + bytes(align(len(header), DEFAULT_ALIGNMENT) - len(header)) + b"".join(data)


def take_apart(path: Path) -> Parts:
    """A whole file's parts."""
    model = read_part(path)
    tensors = [
        Tensor(t.name.encode(errors=NAME_ERRORS), t.shape, t.type, model.read_raw(t.name).tobytes())
        for t in model.tensors.values()
    ]
    return Parts(tuple(model.metadata.values()), tuple(tensors))


def mutant(seeds: Sequence[Parts], random: Random) -> bytes:
    """A file that differs from one of `seeds` in one to three things."""
    parts = random.choice(seeds)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        parts = random.choice(OF_PARTS)(parts, random)
    data = parts.encode()
    if random.random() < 0.3:
        data = random.choice(OF_BYTES)(bytearray(data), random)
    return data


def _other_value(parts: Parts, random: Random) -> Parts:
    """A metadata value of another size or another type."""
    entries = list(parts.metadata)
    i = random.randrange(len(entries))
    kind = random.choice((entries[i].kind, *GGUFValueType))
    entries[i] = _entry(entries[i].key, kind, random)
    return replace(parts, metadata=tuple(entries))


def _entry(key: str, kind: GGUFValueType, random: Random) -> MetadataEntry:
    if kind == GGUFValueType.STRING:
        return metadata_entry(key, random.choice(STRINGS))
    if kind != GGUFValueType.ARRAY:
        return metadata_entry(key, _scalar(kind, random), kind)
    item = random.choice([kind for kind in GGUFValueType if kind != GGUFValueType.ARRAY])
    count = random.choice((0, 1, 2, 3, 100, LARGEST_ARRAY))
    if random.random() < 0.1:  # more than the file has
        lie = struct.pack("<IQ", item, random.choice(WHOLE_NUMBERS))
        return MetadataEntry(key, kind, _key(key) + struct.pack("<I", kind) + lie)
    if item == GGUFValueType.STRING:
        return metadata_entry(key, [random.choice(STRINGS) for _ in range(count)], item)
    return metadata_entry(key, [_scalar(item, random) for _ in range(count)], item)


def _key(key: str) -> bytes:
    return struct.pack("<Q", len(key.encode())) + key.encode()


def _scalar(kind: GGUFValueType, random: Random) -> Any:
    code = SCALAR_FORMATS[kind]
    if code in "fd":
        value = random.choice(FRACTIONS)
        return max(min(value, 3.4e38), -3.4e38) if code == "f" and abs(value) > 3.4e38 and value - value == 0 else value
    if code == "?":
        return random.random() < 0.5
    bits = 8 * struct.calcsize(code)
    value = random.choice(WHOLE_NUMBERS) % 2**bits
    return value - 2**bits if code.islower() and value >= 2 ** (bits - 1) else value


def _without_entry(parts: Parts, random: Random) -> Parts:
    i = random.randrange(len(parts.metadata))
    return replace(parts, metadata=parts.metadata[:i] + parts.metadata[i + 1 :])


def _entry_twice(parts: Parts, random: Random) -> Parts:
    return replace(parts, metadata=(*parts.metadata, random.choice(parts.metadata)))


def _other_key(parts: Parts, random: Random) -> Parts:
    """Something that the readers look for and the seed does not have."""
    architecture = next((e.value for e in parts.metadata if e.key == "general.architecture"), "llama")
    key = random.choice(
        ("general.alignment", "general.name", "surgery.previous", "surgery.layers", "surgery.version", "surgery.calibration.sketch",
         "split.count", "split.no", "split.tensors.count", "general.type", "general.file_type",
         *(f"{architecture}.{name}" for name in
           ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
            "rope.scaling.type", "rope.freq_base", "expert_count", "expert_used_count", "attention.sliding_window",
            "nextn_predict_layers", "attention.kv_lora_rank", "full_attention_interval", "vocab_size"))),
    )  # fmt: skip
    kept = tuple(entry for entry in parts.metadata if entry.key != key)
    return replace(parts, metadata=(*kept, _entry(key, random.choice(list(GGUFValueType)), random)))


def _other_tensor(parts: Parts, random: Random) -> Parts:
    """A tensor of another shape, type, name, place or content; or one less, or one twice."""
    tensors = list(parts.tensors)
    if not tensors:
        return parts
    i = random.randrange(len(tensors))
    t, what = tensors[i], random.randrange(9)
    if what == 0:
        shape = list(t.shape)
        shape[random.randrange(len(shape))] = random.choice(WHOLE_NUMBERS)
        tensors[i] = replace(t, shape=tuple(shape))
    elif what == 1:
        tensors[i] = replace(t, shape=tuple(random.sample(t.shape, len(t.shape)) + [1] * random.randrange(5)))
    elif what == 2:
        tensors[i] = replace(t, type=random.choice([*GGMLQuantizationType, 4, 5, 99, 2**32 - 1]))
    elif what == 3:
        tensors[i] = replace(
            t, name=random.choice((b"", b"[/b]", b"\xff", b"\x1b[2J", random.choice(tensors).name, t.name[:-7]))
        )
    elif what == 4:
        tensors[i] = replace(t, moved=random.choice((1, -1, 32, -32, 2**31, 2**63)))
    elif what == 5:
        del tensors[i]
    elif what == 6:
        tensors.insert(random.randrange(len(tensors) + 1), t)
    elif what == 7:  # nothing, or fewer rows, consistently
        rows = random.choice((0, 1, t.shape[0] // 2))
        tensors[i] = replace(t, shape=(rows, *t.shape[1:]), data=t.data[: len(t.data) // max(t.shape[0], 1) * rows])
    else:
        tensors[i] = replace(t, data=_other_numbers(t.data, random))
    return replace(parts, tensors=tuple(tensors))


def _other_numbers(data: bytes, random: Random) -> bytes:
    """Zeros, one value everywhere, or one number that is none or near the ends of float32."""
    value = struct.pack("<f", random.choice((0.0, 1.0, 1e-45, 1e-20, 1e19, 3e38, float("inf"), float("nan"))))
    if random.random() < 0.5:
        return (value * (len(data) // 4 + 1))[: len(data)]
    place = 4 * random.randrange(max(len(data) // 4, 1))
    return data[:place] + value[: len(data) - place] + data[place + 4 :]


def _lying_counts(parts: Parts, random: Random) -> Parts:
    lie = random.choice((1, -1, 2, 2**31, 2**62, -(2**62)))
    return replace(parts, counts=(lie, 0) if random.random() < 0.5 else (0, lie))


def _other_version(parts: Parts, random: Random) -> Parts:
    return replace(parts, version=random.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1)))


def _cut(data: bytearray, random: Random) -> bytes:
    return bytes(data[: random.randrange(len(data))])


def _other_bytes(data: bytearray, random: Random) -> bytes:
    """Up to eight bytes of the first half, where the header is, are others."""
    for _ in range(random.randrange(1, 9)):
        data[random.randrange(len(data) // 2)] = random.randrange(256)
    return bytes(data)


def _other_number(data: bytearray, random: Random) -> bytes:
    code = random.choice("IQ")
    size = struct.calcsize("<" + code)
    place = random.randrange(max(len(data) // 2 - size, 1))
    data[place : place + size] = struct.pack("<" + code, random.choice(WHOLE_NUMBERS) % 2 ** (8 * size))
    return bytes(data)


def _piece_twice(data: bytearray, random: Random) -> bytes:
    start = random.randrange(len(data))
    size = random.randrange(1, 2000)
    place = random.randrange(len(data))
    return bytes(data[:place] + data[start : start + size] + data[place:])


OF_PARTS: tuple[Callable[[Parts, Random], Parts], ...] = (
    _other_value, _other_value, _other_value, _other_key, _other_key, _other_tensor, _other_tensor, _other_tensor,
    _without_entry, _entry_twice, _lying_counts, _other_version,
)  # fmt: skip
OF_BYTES: tuple[Callable[[bytearray, Random], bytes], ...] = (_cut, _other_bytes, _other_number, _piece_twice)
