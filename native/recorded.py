"""A base's logits in files, a chunk each, so that it is decoded once for all models that are held against it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from native.errors import NativeError


def logits_file(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06}.f32"


@contextmanager
def recording(folder: Path, number: int) -> Iterator[IO[bytes]]:
    """A file for a chunk's logits, float32 (scored tokens, n_vocab); it is complete or absent."""
    path = logits_file(folder, number)
    temporary = path.with_suffix(".partial")
    with temporary.open("wb") as file:
        yield file
    os.replace(temporary, path)


def read_logits(folder: Path, number: int, shape: tuple[int, int]) -> np.ndarray:
    """A chunk's logits, mapped: float32 of `shape` (scored tokens, n_vocab). Raises NativeError if they are not that."""
    path = logits_file(folder, number)
    try:
        if path.stat().st_size != 4 * shape[0] * shape[1]:
            raise ValueError(f"{path.stat().st_size} bytes for {shape[0]} tokens of {shape[1]} logits")
        return np.memmap(path, np.float32, "r", shape=shape)
    except (ValueError, OSError) as error:
        raise NativeError(f"{path}: does not hold the source's logits for this vocabulary ({error})") from None
