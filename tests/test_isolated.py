"""Generators in processes of their own: values go across, errors come back, a crash is explained."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from native.errors import NativeError
from native.evaluate import ModelRun, TextChunks, evaluate_chunks
from native.isolated import _start, isolated
from native.library import ggml_base, native_log
from native.model import ContextOptions
from tests.tiny_model import TinyModel


def adder(start: int) -> Generator[int, int, str]:
    total = start
    for _ in range(3):
        total += yield total
    return f"total {total}"


def failing() -> Generator[int, None, None]:
    yield 1
    raise NativeError("this went wrong")


def aborting() -> Generator[int, None, None]:
    native_log()._receive(2, b"a word before\n", None)  # type: ignore[arg-type]
    native_log().doing("m.gguf", "decoding")
    yield 1
    ggml_base().ggml_abort(b"file.c", 7, b"GGML_ASSERT(%s) failed", b"the rows fit")


def surprising() -> Generator[int, None, None]:
    native_log().doing("m.gguf", "decoding")
    yield 1
    dict[str, int]()["no such thing"]


def greedy() -> Generator[int, None, None]:
    yield 1
    raise MemoryError


def ending_early() -> Generator[int, None, None]:
    yield 1
    raise EOFError("not the parent's end")


def crashing() -> Generator[int, None, None]:
    yield 1
    ctypes.string_at(0)


def logging() -> Generator[int, None, None]:
    native_log()._receive(2, b"[   3/  9] half", None)  # type: ignore[arg-type]
    native_log()._receive(5, b" a line\n", None)  # type: ignore[arg-type]
    yield 1


def talkative() -> Generator[int, None, None]:
    """Prints, from C, more than a pipe holds."""
    for number in (1, 2):
        for _ in range(300):
            ctypes.CDLL(None).write(number, b"noise" * 200, 1000)
    yield 1


def logging_on_and_on() -> Generator[int, None, None]:
    yield 1
    while True:
        native_log()._callback(2, b"a line\n", None)  # from C, through which no exception gets
        time.sleep(0.01)


def endless() -> Generator[int, None, None]:
    yield os.getpid()
    time.sleep(600)


def test_values_go_across() -> None:
    remote = isolated(adder, 10)
    assert next(remote) == 10
    assert remote.send(5) == 15
    assert remote.send(1) == 16
    with pytest.raises(StopIteration) as stop:
        remote.send(1)
    assert stop.value.value == "total 17"


def blas_threads() -> Generator[str | None, None, None]:
    yield os.environ.get("OPENBLAS_NUM_THREADS")


def test_numpy_leaves_the_processors_to_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert list(isolated(blas_threads)) == ["1"]
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert list(isolated(blas_threads)) == ["3"]


def test_errors_come_back() -> None:
    remote = isolated(failing)
    assert next(remote) == 1
    with pytest.raises(NativeError, match="this went wrong"):
        next(remote)


def test_an_abort_is_explained() -> None:
    message = r"^m.gguf: llama.cpp was stopped by SIGABRT while decoding; its last words: .*GGML_ASSERT\(the rows fit\) failed$"
    with pytest.raises(NativeError, match=message) as caught:
        list(isolated(aborting))
    assert "a word before" in caught.value.details


def test_what_nobody_foresaw_names_the_file_and_the_work() -> None:
    with pytest.raises(NativeError, match=r"^m.gguf: failed while decoding \(KeyError: 'no such thing'\)$") as caught:
        list(isolated(surprising))
    assert "in surprising" in caught.value.details
    with pytest.raises(NativeError, match=r"too little memory"):
        list(isolated(greedy))
    with pytest.raises(NativeError, match=r"EOFError: not the parent's end"):
        list(isolated(ending_early))


def test_an_abort_of_llama_cpp_prints_nothing_itself(
    make_tiny: Callable[[TinyModel], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = make_tiny(TinyModel(layers=0))
    message = r"\.gguf: llama.cpp was stopped by SIGABRT while loading it; its last words: llama-model\.cpp:\d+: GGML_"
    with pytest.raises(NativeError, match=message):
        list(isolated(evaluate_chunks, [ModelRun(str(path), ContextOptions())], [TextChunks("")]))
    assert capfd.readouterr() == ("", "")


def test_what_the_process_prints_is_neither_seen_nor_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(isolated(talkative)) == [1]
    assert capfd.readouterr() == ("", "")


def test_a_process_that_the_system_ends_lacked_memory_perhaps() -> None:
    remote = isolated(endless)
    os.kill(next(remote), signal.SIGKILL)
    with pytest.raises(
        NativeError, match=r"stopped by SIGKILL while starting endless; .*was there too little memory\?$"
    ):
        next(remote)


def test_a_crash_is_explained() -> None:
    with pytest.raises(NativeError, match="stopped by SIGSEGV"):
        list(isolated(crashing))


def test_the_log_is_heard_line_by_line() -> None:
    lines: list[str] = []
    assert list(isolated(logging, on_log=lines.append)) == [1]
    assert lines == ["[   3/  9] half a line"]


@pytest.mark.parametrize("ending", ["close", "interrupt"])
def test_closing_ends_the_process(ending: str) -> None:
    remote = isolated(endless)
    pid = next(remote)
    assert psutil.pid_exists(pid)
    os.kill(pid, signal.SIGINT)  # Ctrl-C reaches the whole group; it is the parent's to answer
    time.sleep(0.2)
    assert psutil.pid_exists(pid)
    if ending == "close":
        remote.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            remote.throw(KeyboardInterrupt)
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel by prctl")
def test_the_process_is_killed_with_its_parent() -> None:
    code = (
        "from tests.test_isolated import endless, isolated; r = isolated(endless); print(next(r), flush=True); next(r)"
    )
    root = Path(__file__).parents[1]
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout
    process = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:  # which it stays where nobody adopts orphans
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_process_without_parent_ends_with_its_next_line_of_log() -> None:
    ours, theirs = multiprocessing.Pipe()
    with _start(theirs) as process:
        theirs.close()
        ours.send((logging_on_and_on, (), {}))
        ours.send(None)
        assert ours.recv()[1] == 1
        ours.send(None)
        assert ours.recv()[1] == "a line"
        ours.close()
        assert process.wait(timeout=10) == 1
