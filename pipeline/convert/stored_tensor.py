"""A tensor in a checkpoint's file, whatever the file's format."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np

ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


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

    def read(self) -> np.ndarray:
        """The values as float32, of the tensor's shape."""
        return to_float32(self.load(), self.dtype).reshape(self.shape)


def to_float32(data: np.ndarray, dtype: str) -> np.ndarray:
    """Little-endian bytes of type `dtype` as float32 values. BF16 is the upper half of float32, so no torch is needed."""
    if dtype == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return data.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)
