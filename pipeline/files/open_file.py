"""A file that is opened once and stays the file that was opened, and locks between processes."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.errors import SurgeryError

MOST_AT_ONCE = 2**26  # bytes of one system call
SECONDS_BETWEEN_TRIES = 0.2


class OpenFile:
    """A file open for reading: if its name comes to mean another file, what is read is still of the first.

    Raises OSError when it cannot be opened. Pickled, it is opened anew by its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._opened = os.fstat(self.descriptor)
        self.size = self._opened.st_size

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def __reduce__(self) -> tuple[type["OpenFile"], tuple[Path]]:
        return OpenFile, (self.path,)

    def read(self, offset: int, count: int) -> np.ndarray:
        """Up to `count` bytes from `offset` on: uint8, fewer if the file ends before. From any thread."""
        data, done = np.empty(count, np.uint8), 0
        while done < count and (got := os.pread(self.descriptor, min(count - done, MOST_AT_ONCE), offset + done)):
            data[done : done + len(got)] = np.frombuffer(got, np.uint8)
            done += len(got)
        return data[:done]

    def chunks(self, size: int) -> Iterator[bytes]:
        """The whole file, front to back, `size` bytes at a time."""
        offset = 0
        while chunk := os.pread(self.descriptor, size, offset):
            offset += len(chunk)
            yield chunk

    def require_unchanged(self, *, by_name: bool = False) -> None:
        """Raise SurgeryError when it was written to since it was opened; `by_name`: or its name means another file."""
        now = os.fstat(self.descriptor)
        same = (now.st_size, now.st_mtime_ns) == (self._opened.st_size, self._opened.st_mtime_ns)
        if same and by_name:
            try:
                same = os.path.samestat(now, self.path.stat())
            except OSError:
                same = False
        if not same:
            raise SurgeryError(f"{self.path}: was changed or replaced meanwhile; run this again once it stays as it is")


@contextmanager
def lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock `path`, a file that is there only while somebody holds or wants it.

    `waiting` is called now and then as long as another process has it; one that was killed has it no more.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if _lock_if_possible(descriptor) and leads_to(path, descriptor):
                break
            waiting()
            time.sleep(SECONDS_BETWEEN_TRIES)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(
            missing_ok=True
        )  # while it is held: who waits for this one finds that it is gone, and makes another
        os.close(descriptor)


def _lock_if_possible(descriptor: int) -> bool:
    try:
        return try_lock(descriptor)
    except OSError:  # a file system without locks: nobody waits for anybody
        return True


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder for as long as it is open, unless another process has it.

    Raises OSError on a file system without locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def leads_to(path: Path, descriptor: int) -> bool:
    """Whether the name still means the open file: somebody may have removed or replaced it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
