"""Arrays that are added to now and then and are more than memory should hold: in temporary files, out of memory meanwhile."""

import mmap
import tempfile

import numpy as np


class Sums:
    """Makes arrays to be added to: in memory for the first `most` bytes, then in temporary files."""

    def __init__(self, most: int) -> None:
        self._left = most

    def begin(self, values: np.ndarray) -> np.ndarray:
        """A sum that is `values` so far, in their dtype."""
        self._left -= values.nbytes
        if self._left >= 0:
            return values.copy()
        total = on_disk(values)
        _drop(total)
        return total

    @staticmethod
    def add(total: np.ndarray, values: np.ndarray) -> None:
        """Add `values` to what `begin` made."""
        total += values
        _drop(total)


def on_disk(array: np.ndarray) -> np.ndarray:
    """A copy in an unnamed temporary file, mapped into memory: the system may write it out and drop it from memory."""
    with tempfile.TemporaryFile() as file:
        copy = np.memmap(file, array.dtype, "w+", shape=array.shape)
    copy[:] = array
    return copy


def _drop(array: np.ndarray) -> None:
    """Take an array that is mapped from a file out of this process's memory, not out of the file, where the system can."""
    if isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        array.base.madvise(mmap.MADV_DONTNEED)
