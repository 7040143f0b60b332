"""Output files that are complete under their name, or absent."""

import errno
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from native.errors import NativeError
from pipeline.errors import SurgeryError, UsageError
from pipeline.files.open_file import leads_to, try_lock

LEFTOVER = ".partial"
PART_NAME = re.compile(r".*-\d{5}-of-\d{5}\.gguf")


@contextmanager
def complete_or_absent(path: Path, *, force: bool, sources: Iterable[Path] = (), size: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; rename it to `path` if all went well, else remove it.

    Where `path` is a link, all this happens to the file that it leads to, which need not exist yet. `sources` may not
    be overwritten, even with `force`; without it, nothing is that came to be in the meantime. `size` is how many bytes
    will be needed, as far as known. Several processes may write the same output: each has a file of its own, and the
    last one to end is what stays. Raises UsageError before anything is written when `path` cannot be the output.
    """
    _check_place(path, force=force, sources=sources)
    target = followed(path)
    try:
        remove_abandoned(target)
        free = shutil.disk_usage(target.parent).free
        if size > free:
            raise SurgeryError(f"{path}: no space left: {size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free")
        with _locked(target, _new_file, _remove_file) as temporary:
            with named_as(path, temporary):
                yield temporary
            _check_place(path, force=force, sources=sources)
            if force:
                os.replace(temporary, target)
            else:
                _name(temporary, target)
    except FileExistsError:
        raise UsageError(f"{path}: exists by now, another process made it; add `force` to overwrite it") from None
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be written: {_reason(error)}") from error


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A new folder beside the output `path` for what is needed on the way to it, removed at the end.

    What a kill -9 left of one is removed by the next run that writes `path`. An error about a file of the output's name
    in it is one about `path`: the user knows of no other. Raises SurgeryError when it cannot be made.
    """
    target = followed(path)
    try:
        remove_abandoned(target)
        with _locked(target, tempfile.mkdtemp, shutil.rmtree) as folder, named_as(path, folder / path.name):
            yield folder
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be written: {_reason(error)}") from error


@contextmanager
def named_as(path: Path, temporary: Path) -> Iterator[None]:
    """Errors within that name the file `temporary` are raised as errors about `path`."""
    try:
        yield
    except (SurgeryError, NativeError) as error:
        if str(temporary) not in str(error):
            raise
        renamed = type(error)(str(error).replace(str(temporary), str(path)))
        renamed.__dict__ |= error.__dict__
        raise renamed from error


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
def _locked(target: Path, make: Callable[..., str], remove: Callable[[str], None]) -> Iterator[Path]:
    """A new file or folder, locked as long as it is used: what a kill -9 left behind is known by its missing lock."""
    while True:
        name = make(prefix=f".{target.name}.", suffix=LEFTOVER, dir=target.parent)
        try:
            descriptor = _open_to_lock(Path(name))
        except FileNotFoundError:  # another process took it for abandoned, as it was not locked yet
            continue
        with suppress(OSError):  # a file system without locks: its leftovers stay
            if not try_lock(descriptor):
                os.close(descriptor)
                continue
        if leads_to(Path(name), descriptor):
            break
        os.close(descriptor)
    try:
        yield Path(name)
    finally:
        with suppress(FileNotFoundError):
            remove(name)
        os.close(descriptor)


def _open_to_lock(path: Path) -> int:
    """Open what is to be locked: network file systems lock only what is open for writing, which no folder can be."""
    return os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_CLOEXEC)


def _new_file(**naming: Any) -> str:
    handle, name = tempfile.mkstemp(**naming)
    os.fchmod(handle, 0o666 & ~_umask())
    os.close(handle)
    return name


def _remove_file(name: str) -> None:
    os.unlink(name)


def _name(temporary: Path, target: Path) -> None:
    """Give a file its name unless there is one by now. Raises FileExistsError."""
    try:
        os.link(temporary, target)  # a second name, in one step; the first goes as that of any temporary file
    except FileExistsError:
        raise
    except OSError:  # a file system without second names
        os.rename(temporary, target)


def check_output(path: Path, *, force: bool, sources: Iterable[Path] = ()) -> None:
    """Raise UsageError unless `path` can become an output file that overwrites none of `sources`."""
    if PART_NAME.fullmatch(followed(path).name):
        raise UsageError(f"{path}: is a name for a part of a split model, and what is written is whole; choose another")
    if str(path) == "-":
        raise UsageError("-: is no file's name here, and nothing is written to standard output; name a file")
    _check_place(path, force=force, sources=sources)


def _check_place(path: Path, *, force: bool, sources: Iterable[Path]) -> None:
    folder = followed(path).parent
    if path.exists():  # what a link leads to decides
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file in it")
        if not path.is_file():
            raise UsageError(f"{path}: is a device, pipe or socket; name a file")
        if any(path.samefile(source) for source in sources):
            raise UsageError(f"{path}: is the input itself; name another output")
        if not force:
            raise UsageError(f"{path}: exists already; add `force` to overwrite it")
    if not folder.is_dir():
        raise UsageError(f"{path}: the folder {folder} does not exist; make it first")
    if followed(path).is_symlink():
        raise UsageError(f"{path}: is a link that leads round in a circle; name a file")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: the folder {folder} is read-only; choose another")


def remove_abandoned(target: Path) -> None:
    """Remove what killed runs left of files and folders on the way to `target`."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*{LEFTOVER}"):
        with suppress(OSError):  # another user's, or a file system without locks
            descriptor = _open_to_lock(leftover)
            try:
                if try_lock(descriptor):  # else another process is writing it
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
