"""Read a GGUF model lazily: its header is checked in full, a tensor is read from disk when it is asked for.

gguf's own GGUFReader builds an object for every token of the vocabulary (2 seconds and 190 MB for 49,000 tokens) and
believes the counts in the header; here a lying header is an error that names what is wrong.
"""

import hashlib
import mmap
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from pipeline.errors import SurgeryError
from pipeline.files.open_file import OpenFile
from pipeline.gguf_file.hyperparameters import unexpected_value
from pipeline.gguf_file.metadata import Cursor, MetadataEntry

DEFAULT_ALIGNMENT = 32
LARGEST_DIMENSION = 2**31 - 1  # no model comes near: what is beyond is no truncated file but a header that lies
LARGEST_OF_NOTHING = 2**15  # a dimension of a tensor that holds nothing
NAME_ERRORS = "surrogateescape"  # a tensor's name that is not UTF-8 is written as it was read
FLOAT_TYPES = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a GGUF file. `shape` is (rows, ..., columns): GGUF's own order reversed."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    path: Path
    offset: int  # bytes from the start of the file
    file: OpenFile | None = field(default=None, repr=False, compare=False)  # None: opened by its path when it is read

    @property
    def nbytes(self) -> int:
        return tensor_nbytes(self.shape, self.type)

    @property
    def parameters(self) -> int:
        return prod(self.shape)

    def of_matrix(self, number: int) -> "TensorInfo":
        """Where one of the matrices is, which a tensor of three axes has one after the other."""
        shape = self.shape[1:]
        return replace(self, shape=shape, offset=self.offset + number * tensor_nbytes(shape, self.type))


def tensor_nbytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Bytes that a tensor of `shape` takes in type `kind`; its last axis must be a multiple of the type's block."""
    block, size = GGML_QUANT_SIZES[kind]
    return prod(shape) // block * size


@dataclass(frozen=True)
class GGUFModel:
    """One model: metadata and tensors in file order, of one GGUF file or of all the parts of a split one."""

    paths: tuple[Path, ...]
    alignment: int
    metadata: dict[str, MetadataEntry]
    tensors: dict[str, TensorInfo] = field(repr=False)
    files: tuple[OpenFile, ...] = field(default=(), repr=False, compare=False, kw_only=True)

    @property
    def path(self) -> Path:
        return self.paths[0]

    @property
    def name(self) -> str:
        """What the model is called in messages and in what is recorded of it."""
        return self.path.name

    @property
    def file_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key, or `default`."""
        return self.metadata[key].value if key in self.metadata else default

    @cached_property
    def architecture(self) -> str:
        return str(self.get("general.architecture", ""))

    def hyperparameter(self, name: str, default: Any = None) -> Any:
        """The value of `<architecture>.<name>`, such as `block_count`, or `default`.

        Raises SurgeryError for what cannot be the value of such a name, see `unexpected_value`.
        """
        key = f"{self.architecture}.{name}"
        if key not in self.metadata:
            return default
        value = self.metadata[key].value
        if expected := unexpected_value(name, value):
            shown = ascii(value if not isinstance(value, list) else value[:3])[:60]
            raise SurgeryError(f"{self.path}: {key} is {shown}; expected {expected}; the file is damaged, get it anew")
        return value

    def read_raw(self, name: str, matrix: int | None = None) -> np.ndarray:
        """The stored bytes of a tensor, or of a `matrix` of one with several: uint8, of shape (rows, bytes per row)."""
        info = self.tensors[name] if matrix is None else self.tensors[name].of_matrix(matrix)
        data = (info.file or OpenFile(info.path)).read(info.offset, info.nbytes)
        if data.size != info.nbytes:
            raise SurgeryError(f"{info.path}: tensor {name} could not be read whole; was the file changed meanwhile?")
        return data.reshape(*info.shape[:-1], tensor_nbytes(info.shape[-1:], info.type))

    def stored(self, name: str) -> TensorInfo | None:
        """Where the very bytes that `read_raw` gives stand in a file; None where they have to be made."""
        return self.tensors[name]

    def sha256(self, stop: Callable[[], bool] = lambda: False) -> str:
        """SHA-256, in hex, of the model's files, one after the other; `stop` can end it early, with a wrong hash."""
        if (known := self.__dict__.get("_sha256")) is None:
            digest = hashlib.sha256()
            for file in self.files or map(OpenFile, self.paths):
                for chunk in file.chunks(2**20):
                    digest.update(chunk)
                    if stop():
                        break
            known = digest.hexdigest()
            if not stop():
                self.__dict__["_sha256"] = known  # as cached_property does
        return known

    def require_unchanged(self, *, by_name: bool = False) -> None:
        """Raise SurgeryError when a file was written to since it was opened; `by_name`: or replaced by another."""
        for file in self.files:
            file.require_unchanged(by_name=by_name)

    def read(self, name: str, matrix: int | None = None) -> np.ndarray:
        """A tensor, or a `matrix` of one with several, as float32 of its full shape, dequantised if need be.

        Raises SurgeryError on NaN or infinity.
        """
        info = self.tensors[name]
        shape = info.shape if matrix is None else info.shape[1:]
        if not info.parameters:
            return np.zeros(shape, np.float32)
        try:
            values = dequantize(self.read_raw(name, matrix), info.type).reshape(shape)
        except NotImplementedError:
            raise SurgeryError(f"{info.path}: tensor {name} has type {info.type.name}, which cannot be read") from None
        if not np.isfinite(values).all():
            raise SurgeryError(f"{info.path}: tensor {name} holds NaN or infinity; the file is damaged, get it anew")
        return values


def open_gguf(path: Path) -> GGUFModel:
    """Open a GGUF file, or the first part of a split one (`-00001-of-0000N.gguf`), and check its header.

    Raises SurgeryError when the file is missing, not GGUF, truncated, or when its header contradicts itself.
    """
    paths = _part_paths(path)
    parts = [read_part(part) for part in paths]
    tensors: dict[str, TensorInfo] = {}
    for number, part in enumerate(parts):
        _check_split(part, number, len(parts))
        if twice := tensors.keys() & part.tensors.keys():
            raise SurgeryError(f"{part.path}: tensor {min(twice)} is also in another part")
        tensors |= part.tensors
    expected = parts[0].get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise SurgeryError(f"{path}: the parts hold {len(tensors)} tensors, {expected} were announced")
    metadata = {key: entry for key, entry in parts[0].metadata.items() if not key.startswith("split.")}
    return GGUFModel(tuple(paths), parts[0].alignment, metadata, tensors)


def _check_split(part: GGUFModel, number: int, count: int) -> None:
    """Raise SurgeryError when a file is another part, of more or fewer, than its name says."""
    announced, place = part.get("split.count", 1), part.get("split.no", 0)
    if (announced or 1, place) == (count, number):  # llama.cpp writes a count of 0 where there is one part
        return
    if announced == 1:
        raise SurgeryError(
            f"{part.path}: named as part {number + 1} of {count}, but it says that it is whole; name it otherwise"
        )
    raise SurgeryError(
        f"{part.path}: says that it is part {place + 1 if isinstance(place, int) else place} of {announced}, where part"
        f" {number + 1} of {count} was expected; parts keep their names (NAME-00001-of-0000N.gguf) and stand in one"
        " folder; where they were renamed, name them back, where they were concatenated, get them anew"
    )


def _part_paths(path: Path) -> list[Path]:
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if not match:
        return [path]
    if int(match[2]) != 1:
        raise SurgeryError(
            f"{path}: this is part {int(match[2])} of {int(match[3])}; name the first part, {match[1]}-00001-of-{match[3]}.gguf"
        )
    paths = [path.with_name(f"{match[1]}-{part:05}-of-{match[3]}.gguf") for part in range(1, int(match[3]) + 1)]
    if missing := [part.name for part in paths if not part.exists()]:
        raise SurgeryError(f"{path}: {len(missing)} of {len(paths)} parts are missing, the first is {missing[0]}")
    return paths


def read_part(path: Path) -> GGUFModel:
    """Read one file's header as `open_gguf` does, whatever other parts there may be."""
    if not path.exists():
        raise SurgeryError(f"{path}: no such file")
    if not path.is_file():
        raise SurgeryError(f"{path}: not a file")
    try:
        file = OpenFile(path)
        if file.size < 24:
            raise SurgeryError(f"{path}: not a GGUF file, it has only {file.size} bytes")
        with mmap.mmap(file.descriptor, 0, access=mmap.ACCESS_READ) as buffer:
            return _parse(file, buffer)
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be read: {error.strerror}") from None
    except EOFError:
        raise SurgeryError(
            f"{path}: the GGUF header runs past the end of the file; it is truncated or damaged"
        ) from None
    except ValueError as error:
        raise SurgeryError(f"{path}: damaged GGUF header: {error}") from None


def _parse(file: OpenFile, buffer: mmap.mmap) -> GGUFModel:
    path = file.path
    if buffer[:4] != b"GGUF":
        raise SurgeryError(f"{path}: not a GGUF file (it starts with {_shown(bytes(buffer[:4]))})")
    cursor = Cursor(buffer, 4)
    version = cursor.number("I")
    if version not in (2, 3):
        hint = "big-endian files are not supported" if version & 0xFFFF == 0 else "versions 2 and 3 are"
        raise SurgeryError(f"{path}: GGUF version {version} is not supported; {hint}")
    n_tensors, n_entries = cursor.number("Q"), cursor.number("Q")
    smallest_entry, smallest_tensor = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
    if n_entries * smallest_entry + n_tensors * smallest_tensor > cursor.end:
        raise ValueError(
            f"it announces {n_entries} metadata entries and {n_tensors} tensors, more than the file can hold"
        )
    metadata = {entry.key: entry for entry in _metadata(cursor, n_entries)}
    alignment = metadata["general.alignment"].value if "general.alignment" in metadata else DEFAULT_ALIGNMENT
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment} is not a power of two")
    infos = [_tensor_info(cursor, path) for _ in range(n_tensors)]
    tensors = {
        name: replace(info, file=file) for name, info in _place(infos, cursor.position, cursor.end, alignment).items()
    }
    return GGUFModel((path,), alignment, metadata, tensors, files=(file,))


def _shown(start: bytes) -> str:
    text = start.decode("ascii", errors="replace")
    return f'"{text}"' if start.isascii() and text.isprintable() else f"the bytes {start.hex(' ')}"


def _metadata(cursor: Cursor, count: int) -> Iterator[MetadataEntry]:
    seen = set()
    for _ in range(count):
        start = cursor.position
        key = cursor.string()
        if key in seen:
            raise ValueError(f"metadata key {key!r} appears twice")
        seen.add(key)
        kind = cursor.value_type()
        cursor.skip_value(kind)
        yield MetadataEntry(key, kind, bytes(cursor.buffer[start : cursor.position]))


def _tensor_info(cursor: Cursor, path: Path) -> TensorInfo:
    name = cursor.raw_string().decode("utf-8", NAME_ERRORS)
    n_dims = cursor.number("I")
    if not 1 <= n_dims <= 4:
        raise ValueError(f"tensor {name!r} has {n_dims} dimensions, between 1 and 4 are allowed")
    shape = tuple(reversed(cursor.numbers("Q", n_dims)))
    number = cursor.number("I")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise ValueError(
            f"tensor {name!r} has type {number}, which this version of the gguf package does not know"
        ) from None
    # A tensor may hold nothing; its other dimensions are bounded by no bytes then.
    largest = LARGEST_DIMENSION if all(shape) else LARGEST_OF_NOTHING
    if max(shape) > largest or shape[-1] % GGML_QUANT_SIZES[kind][0]:
        raise ValueError(f"tensor {name!r} of type {kind.name} has the impossible shape {shape}")
    return TensorInfo(name, shape, kind, path, cursor.number("Q"))


def _place(infos: list[TensorInfo], header_end: int, file_end: int, alignment: int) -> dict[str, TensorInfo]:
    """Turn offsets within the data section into offsets within the file, checking them as llama.cpp does."""
    data_start = align(header_end, alignment)
    expected = 0
    placed: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in placed:
            raise ValueError(f"tensor {info.name!r} appears twice")
        if info.offset != expected:
            raise ValueError(f"tensor {info.name!r} is said to be at {info.offset}, where {expected} was expected")
        placed[info.name] = TensorInfo(info.name, info.shape, info.type, info.path, data_start + info.offset)
        end = data_start + info.offset + info.nbytes
        if end > file_end:
            raise ValueError(
                f"tensor {info.name!r} ends at byte {end}, the file at {file_end}; it is truncated, or its header damaged; get it anew"
            )
        expected = align(info.offset + info.nbytes, alignment)
    return placed


def align(offset: int, alignment: int) -> int:
    """The next multiple of `alignment` from `offset` on."""
    return -(-offset // alignment) * alignment
