"""Write a GGUF file: every tensor is declared first, then copied or put in any order; none can be forgotten."""

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGMLQuantizationType

from pipeline.errors import SurgeryError
from pipeline.files.open_file import OpenFile
from pipeline.files.output_file import complete_or_absent
from pipeline.gguf_file.metadata import MetadataEntry
from pipeline.gguf_file.reader import NAME_ERRORS, GGUFModel, TensorInfo, align, read_part
from pipeline.progress import Progress, silent

COPY_CHUNK = 32 * 2**20  # bytes copied between two reports of progress


@dataclass(frozen=True)
class TensorDeclaration:
    """A tensor that a new file will hold; `shape` is (rows, ..., columns)."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType


@dataclass
class GGUFWriter:
    """An open new file whose header stands; see `create_gguf`."""

    file: BinaryIO
    header: bytes
    tensors: dict[str, TensorInfo]
    alignment: int
    progress: Progress
    missing: set[str] = field(init=False)
    parts: dict[str, set[int]] = field(default_factory=dict)
    total: int = field(init=False)
    done: int = 0

    def __post_init__(self) -> None:
        self.missing = set(self.tensors)
        self.total = sum(info.nbytes for info in self.tensors.values())

    def put(self, name: str, data: np.ndarray, matrix: int | None = None) -> None:
        """Write a tensor's stored bytes (uint8, any shape, of exactly the declared size), or those of a `matrix` of it."""
        info = self._claim(name) if matrix is None else self._claim_matrix(name, matrix)
        if data.nbytes != info.nbytes:
            raise AssertionError(f"tensor {name}: {data.nbytes} bytes given, {info.nbytes} declared")
        self.file.seek(info.offset)
        self.file.write(np.ascontiguousarray(data).data)
        self._advance(info.nbytes)

    def copy(self, source: TensorInfo) -> None:
        """Copy a tensor byte for byte from the file that it is in, within the kernel where that is possible."""
        info = self._claim(source.name)
        if (source.type, source.shape) != (info.type, info.shape):
            raise AssertionError(f"tensor {source.name}: declared as {info.type.name} {info.shape}")
        self.file.flush()
        file = source.file or OpenFile(source.path)
        _copy_range(file.descriptor, source.offset, self.file.fileno(), info.offset, info.nbytes, self._advance)

    def copy_from(self, model: GGUFModel, name: str) -> None:
        """Write a tensor of `model` as it is."""
        stored = model.stored(name)
        if stored is None:
            self.put(name, model.read_raw(name))
        else:
            self.copy(stored)

    def replace_metadata(self, metadata: Iterable[MetadataEntry]) -> None:
        """Write metadata anew that became known on the way; it must take as many bytes as what was declared."""
        header, _, _ = layout(list(metadata), [*self.tensors.values()], self.alignment)
        if len(header) != len(self.header):
            raise AssertionError(f"the header takes {len(header)} bytes, {len(self.header)} were declared")
        self.file.seek(0)
        self.file.write(header)

    def _advance(self, count: int) -> None:
        self.done += count
        self.progress(self.done, self.total, "")

    def _claim(self, name: str) -> TensorInfo:
        self.missing.remove(name)
        return self.tensors[name]

    def _claim_matrix(self, name: str, matrix: int) -> TensorInfo:
        """As `_claim`, once all matrices of the tensor were."""
        info = self.tensors[name]
        left = self.parts.setdefault(name, set(range(info.shape[0])))
        left.remove(matrix)
        if not left:
            self._claim(name)
        return info.of_matrix(matrix)


@contextmanager
def create_gguf(
    path: Path,
    metadata: Iterable[MetadataEntry],
    declarations: Iterable[TensorDeclaration],
    *,
    alignment: int,
    force: bool,
    sources: Iterable[Path] = (),
    progress: Progress = silent,
) -> Iterator[GGUFWriter]:
    """Create `path` with this metadata and these tensors, in this order; yield a writer for the tensors' bytes.

    The file appears under its name only when every declared tensor was written and its header reads back.
    `progress` counts the bytes of tensors. Raises UsageError and SurgeryError as
    `complete_or_absent` does.
    """
    header, tensors, size = layout(list(metadata), list(declarations), alignment)
    with complete_or_absent(path, force=force, sources=sources, size=size) as temporary:
        with temporary.open("r+b") as file:
            file.write(header)
            file.truncate(size)
            writer = GGUFWriter(file, header, tensors, alignment, progress)
            yield writer
        if writer.missing:
            raise AssertionError(f"tensors never written: {sorted(writer.missing)}")
        written = read_part(temporary).tensors
        if [(t.shape, t.offset) for t in written.values()] != [(t.shape, t.offset) for t in tensors.values()]:
            raise SurgeryError(f"{path}: the written header does not read back as it should; is the disk failing?")


def layout(
    metadata: list[MetadataEntry], declarations: Sequence[TensorDeclaration | TensorInfo], alignment: int
) -> tuple[bytes, dict[str, TensorInfo], int]:
    """The header's bytes, every tensor with its place in the file, and the size of the whole file in bytes."""
    fixed = b"GGUF" + struct.pack("<IQQ", 3, len(declarations), len(metadata)) + b"".join(e.raw for e in metadata)
    records, places, offset = [], [], 0
    for tensor in declarations:
        name = tensor.name.encode(errors=NAME_ERRORS)
        dims = tuple(reversed(tensor.shape))
        records.append(
            struct.pack("<Q", len(name))
            + name
            + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type, offset)
        )
        info = TensorInfo(tensor.name, tensor.shape, tensor.type, Path(), offset)
        places.append(info)
        offset = align(offset + info.nbytes, alignment)
    header = fixed + b"".join(records)
    data_start = align(len(header), alignment)
    tensors = {p.name: TensorInfo(p.name, p.shape, p.type, p.path, data_start + p.offset) for p in places}
    return header, tensors, data_start + offset


def _copy_range(
    source: int, source_at: int, target: int, target_at: int, count: int, advance: Callable[[int], None]
) -> None:
    in_kernel = hasattr(os, "copy_file_range")
    while count:
        done = 0
        if in_kernel:
            try:
                done = os.copy_file_range(source, target, min(count, COPY_CHUNK), source_at, target_at)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                    raise
                in_kernel = False  # these two file systems cannot; read and write instead
        if not in_kernel:
            done = os.pwrite(target, os.pread(source, min(count, COPY_CHUNK), source_at), target_at)
        if not done:
            raise SurgeryError("the source file ended early; was it changed meanwhile?")
        source_at, target_at, count = source_at + done, target_at + done, count - done
        advance(done)
