"""An output file is complete under its name, or absent."""

import errno
import fcntl
import os
import pickle
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import SurgeryError, UsageError
from pipeline.files.open_file import OpenFile, lock
from pipeline.files.output_file import check_output, complete_or_absent, folder_beside, named_as


def write(path: Path, content: str, **options: object) -> None:
    with complete_or_absent(path, **{"force": False, **options}) as temporary:  # type: ignore[arg-type]
        temporary.write_text(content)


def test_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with complete_or_absent(path, force=False) as temporary:
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    old = tmp_path / "out"
    old.write_text("old")

    def fail_half_way() -> None:
        with complete_or_absent(old, force=True) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_refuses_outputs_that_cannot_be(tmp_path: Path) -> None:
    existing = tmp_path / "existing"
    existing.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(existing)
    for path, options, message in (
        (existing, {}, "add `force`"),
        (existing, {"force": True, "sources": [existing]}, "is the input itself"),
        (link, {"force": True, "sources": [existing]}, "is the input itself"),
        (tmp_path, {"force": True}, "is a folder"),
        (tmp_path / "no" / "out", {}, "does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            write(path, "new", **options)
    assert existing.read_text() == "precious"


def test_writes_through_links(tmp_path: Path) -> None:
    """A link stays one, and what it leads to is written, beside itself, whether it was there or not."""
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target"
    first, second = tmp_path / "first", tmp_path / "second"
    first.symlink_to("second")
    second.symlink_to("elsewhere/target")
    write(first, "new")
    with complete_or_absent(first, force=True) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("newer")
    assert target.read_text() == "newer"
    assert first.is_symlink()
    assert second.is_symlink()
    assert os.listdir(tmp_path / "elsewhere") == ["target"]


def test_refuses_what_is_no_regular_file_behind_a_link_too(tmp_path: Path) -> None:
    pipe, to_pipe, circle, nowhere = (tmp_path / name for name in ("pipe", "to pipe", "circle", "nowhere"))
    os.mkfifo(pipe)
    to_pipe.symlink_to(pipe)
    circle.symlink_to(circle)
    nowhere.symlink_to(tmp_path / "no" / "out")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")  # relative, as such a path must be short
        for path, message in (
            (pipe, "is a device, pipe or socket"),
            (to_pipe, "is a device, pipe or socket"),
            (tmp_path / "socket", "is a device, pipe or socket"),
            (circle, "in a circle"),
            (nowhere, "no does not exist"),
        ):
            with pytest.raises(UsageError, match=message):
                write(path, "new", force=True)
    assert to_pipe.is_symlink()
    assert circle.is_symlink()


@pytest.mark.parametrize(("number", "message"), [(errno.ENOSPC, "no space left"), (errno.EFBIG, "ulimit -f")])
def test_a_file_that_cannot_grow_says_why(tmp_path: Path, number: int, message: str) -> None:
    def fail_half_way() -> None:
        with complete_or_absent(tmp_path / "out", force=False):
            raise OSError(number, os.strerror(number))

    with pytest.raises(SurgeryError, match=f"out: cannot be written: .*{message}"):
        fail_half_way()


def test_refuses_more_than_the_disk_holds(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="no space left"):
        write(tmp_path / "out", "", size=2**60)
    assert not os.listdir(tmp_path)


def test_removes_what_a_killed_run_left_but_not_what_is_being_written(tmp_path: Path) -> None:
    abandoned, written, other = (tmp_path / name for name in (".out.a.partial", ".out.b.partial", ".else.c.partial"))
    for path in (abandoned, written, other):
        path.touch()
    with written.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write(tmp_path / "out", "new")
    assert sorted(os.listdir(tmp_path)) == [".else.c.partial", ".out.b.partial", "out"]


def test_removes_a_folder_that_a_killed_run_left_too(tmp_path: Path) -> None:
    (tmp_path / ".out.a.partial").mkdir()
    (tmp_path / ".out.a.partial" / "out").write_text("as large as a model")
    with folder_beside(tmp_path / "out") as folder:
        assert not (tmp_path / ".out.a.partial").exists()
        (folder / "out").touch()
        write(tmp_path / "out", "new")  # which leaves alone what is in use
        assert (folder / "out").exists()
        with pytest.raises(SurgeryError, match=f"^{tmp_path}/out: went wrong$"):
            complain_of(folder / "out")
    assert os.listdir(tmp_path) == ["out"]


def complain_of(path: Path) -> None:
    with named_as(path.parent.parent / path.name, path):
        raise SurgeryError(f"{path}: went wrong")


def test_many_writers_at_once_each_write_the_whole(tmp_path: Path) -> None:
    def write_some(number: int) -> None:
        with complete_or_absent(tmp_path / "out", force=True) as temporary, temporary.open("w") as file:
            for _ in range(100):
                file.write(f"{number:03}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_some, range(80)))
    content = (tmp_path / "out").read_text()
    assert content == content[:3] * 100
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_that_came_to_be_meanwhile_is_not_overwritten_unasked(tmp_path: Path) -> None:
    barrier, told = threading.Barrier(4), []

    def write_once(number: int) -> None:
        try:
            with complete_or_absent(tmp_path / "out", force=False) as temporary:
                temporary.write_text(str(number))
                barrier.wait(10)
        except UsageError as error:
            told.append(str(error))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_once, range(4)))
    assert len(told) == 3
    assert all("add `force`" in message for message in told)
    assert os.listdir(tmp_path) == ["out"]


def test_a_name_for_a_part_of_a_split_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a part of a split model"):
        check_output(tmp_path / "m-00001-of-00002.gguf", force=False)


def test_an_open_file_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"first")
    other.write_bytes(b"other")
    file = OpenFile(path)
    file.require_unchanged(by_name=True)
    os.replace(other, path)
    assert file.read(1, 10).tobytes() == b"irst"
    file.require_unchanged()
    with pytest.raises(SurgeryError, match="a: was changed or replaced meanwhile"):
        file.require_unchanged(by_name=True)
    assert pickle.loads(pickle.dumps(file)).read(0, 5).tobytes() == b"other"
    file = OpenFile(path)
    with path.open("ab") as longer:
        longer.write(b"!")
    with pytest.raises(SurgeryError, match="was changed"):
        file.require_unchanged()


def test_a_lock_is_had_by_one_at_a_time_and_leaves_nothing(tmp_path: Path) -> None:
    inside, most, waited = 0, 0, 0

    def hold(_: int) -> None:
        nonlocal inside, most, waited

        def waiting() -> None:
            nonlocal waited
            waited += 1

        with lock(tmp_path / "lock", waiting):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(hold, range(5)))
    assert most == 1
    assert waited
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".out.a.partial").touch()  # somebody's, perhaps in use
    with folder_beside(tmp_path / "out"), lock(tmp_path / "lock", lambda: None):
        write(tmp_path / "out", "new")
    assert sorted(os.listdir(tmp_path)) == [".out.a.partial", "out"]
