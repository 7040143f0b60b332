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

    Where `path` is a link, all this happens to the file that it leads to, which need not exist yet. `sources` may not
    be overwritten, even with `force`; `size` is how many bytes will be needed, as far as known.
    The temporary file is locked while it is written, so what a kill -9 left behind is known by its missing lock and
    removed by the next run. Raises UsageError before anything is written when `path` cannot be the output.
    """
    check_output(path, force=force, sources=sources)
    target = followed(path)
    try:
        _remove_abandoned(target)
        free = shutil.disk_usage(target.parent).free
        if size > free:
            raise SurgeryError(f"{path}: no space left: {size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free")
        with _locked_temporary(target) as temporary:
            yield temporary
            check_output(path, force=force, sources=sources)
            os.replace(temporary, target)
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be written: {_reason(error)}") from error


def followed(path: Path) -> Path:
    """Where a file of this name ends up: `path`, or what it leads to if it is a link, also one to nothing yet."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left; make room, or choose another folder"
    if error.errno == errno.EFBIG:
        return "it grows larger than a file may be here; raise the limit (ulimit -f), or choose another folder"
    return error.strerror or str(error)


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
    folder = followed(path).parent
    if path.exists():  # what a link leads to decides
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file in it")
        if not path.is_file():
            raise UsageError(f"{path}: is a device, pipe or socket; name a file")
        if any(path.samefile(source) for source in sources):
            raise UsageError(f"{path}: is the input itself; name another output")
        if not force:
            raise UsageError(f"{path}: exists already; add --force to overwrite it")
    if not folder.is_dir():
        raise UsageError(f"{path}: the folder {folder} does not exist; make it first")
    if followed(path).is_symlink():
        raise UsageError(f"{path}: is a link that leads round in a circle; name a file")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: the folder {folder} is read-only; choose another")


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
