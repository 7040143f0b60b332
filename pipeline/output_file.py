"""Output files that are complete under their name, or absent."""

import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import SurgeryError, UsageError


@contextmanager
def complete_or_absent(path: Path, *, force: bool, sources: Iterable[Path] = (), size: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; rename it to `path` if all went well, else remove it.

    `sources` may not be overwritten, even with `force`; `size` is how many bytes will be needed, as far as known.
    The temporary file is locked while it is written, so what a kill -9 left behind is known by its missing lock and
    removed by the next run. Raises UsageError before anything is written when `path` cannot be the output.
    """
    check_output(path, force=force, sources=sources)
    try:
        _remove_abandoned(path)
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise SurgeryError(f"{path}: no space left: {size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free")
        with _locked_temporary(path) as temporary:
            yield temporary
            check_output(path, force=force, sources=sources)
            os.replace(temporary, path)
    except OSError as error:
        reason = "no space left" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else error.strerror
        raise SurgeryError(f"{path}: cannot be written: {reason}") from error


@contextmanager
def _locked_temporary(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.chmod(name, 0o666 & ~_umask())
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(handle)


def check_output(path: Path, *, force: bool, sources: Iterable[Path] = ()) -> None:
    """Raise UsageError unless `path` can become an output file that overwrites none of `sources`."""
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file in it")
    if path.exists():
        if not path.is_file():
            raise UsageError(f"{path}: is a device, pipe or socket; name a file")
        if any(path.samefile(source) for source in sources):
            raise UsageError(f"{path}: is the input itself; name another output")
        if not force:
            raise UsageError(f"{path}: exists already; add --force to overwrite it")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: the folder {path.parent} is read-only; choose another")


def _remove_abandoned(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with leftover.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # another process is writing it
            leftover.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
