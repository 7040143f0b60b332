"""A tensor in a checkpoint's file, whatever the file's format."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

from pipeline.errors import SurgeryError

ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
EXPONENTS = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}  # all ones: NaN or infinity
CHUNK = 16 * 2**20  # bytes


@dataclass(frozen=True)
class StoredTensor:
    """`dtype` is named as safetensors does; `load` gives the little-endian bytes, uint8 of shape (nbytes,).

    `offset` is where those bytes start in the file at `path`, None when they are not there as they are.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: Path
    offset: int | None
    load: Callable[[], np.ndarray] = field(repr=False)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_SIZES[self.dtype]

    def chunks(self) -> Iterator[np.ndarray]:
        """The bytes, a few megabytes at a time."""
        if self.offset is None:
            yield self.load()
            return
        for start in range(0, self.nbytes, CHUNK):
            count = min(CHUNK, self.nbytes - start)
            yield np.fromfile(self.path, np.uint8, count, offset=self.offset + start)

    def same_as(self, other: "StoredTensor") -> bool:
        """Whether both hold the same bytes in the same shape and type."""
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        return all(np.array_equal(mine, theirs) for mine, theirs in zip(self.chunks(), other.chunks(), strict=True))

    def check_finite(self) -> None:
        """Raise SurgeryError when a value is NaN or infinite."""
        mask = EXPONENTS[self.dtype]
        for chunk in self.chunks():
            bits = chunk.view(f"<u{ITEM_SIZES[self.dtype]}")
            if (bits & bits.dtype.type(mask)).max(initial=0) == mask:
                raise SurgeryError(
                    f"{self.path}: tensor {self.name} holds NaN or infinity; the checkpoint is damaged, get it anew"
                )


def to_float32(data: np.ndarray, dtype: str) -> np.ndarray:
    """Little-endian bytes of type `dtype` as float32 values. BF16 is the upper half of float32, so no torch is needed."""
    if dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # of F64, which the caller looks for
        return data.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
