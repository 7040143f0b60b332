"""Run a generator in a process of its own: an abort or crash of llama.cpp there is an error here, not the end."""

import ctypes
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from native.errors import NativeError
from native.library import native_log

YIELDED, LOGGED, BEGUN, RETURNED, RAISED = range(5)
LINES_KEPT = 200  # of the log, for whoever looks for a fault
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def isolated(
    function: Callable[..., Generator[Any, Any, Any]],
    *args: Any,
    on_log: Callable[[str], None] | None = None,
    **kwargs: Any,
) -> Generator[Any, Any, Any]:
    """Run the generator `function(*args, **kwargs)` in a fresh process: what it yields, returns and is sent goes across.

    `function` and all values must be picklable. `on_log` hears each line of llama.cpp's log; what else the process
    prints is seen by nobody. Closing this generator ends the process. Raises what the generator raises, if that is a
    NativeError, OSError or UnicodeError, and else NativeError with the file, what was being done, and the exception or,
    if the process dies, the last line of its stderr or of the log.
    """
    ours, theirs = multiprocessing.Pipe()
    process = _start(theirs)
    theirs.close()
    stderr = process.stderr
    assert stderr is not None  # `_start` makes it a pipe
    log: deque[str] = deque(maxlen=LINES_KEPT)
    activity = ("", f"starting {function.__name__}")
    try:
        ours.send((function, args, kwargs))
        sent = None
        while True:
            ours.send(sent)
            while (answer := ours.recv())[0] in (LOGGED, BEGUN):
                if answer[0] == BEGUN:
                    activity = answer[1]
                    continue
                log.append(answer[1])
                if on_log:
                    on_log(answer[1])
            kind, value = answer
            if kind == RETURNED:
                return value
            if kind == RAISED:
                raise value
            sent = yield value
    except (EOFError, ConnectionError):
        process.wait()
        raise _death(process.returncode, stderr.read().decode("utf-8", errors="replace"), log, activity) from None
    finally:
        process.kill()
        process.wait()
        stderr.close()
        ours.close()


def _start(connection: Connection) -> "subprocess.Popen[bytes]":
    """A fresh interpreter that serves `connection`, with the same modules in reach.

    Not multiprocessing's own: that imports the main program again, and refuses within a worker of another pool. NumPy
    runs in one thread there, unless the user said otherwise: llama.cpp's threads take all processors, and OpenBLAS's
    would spin against them, at twice the time for both. Its stdout is nowhere and its stderr a pipe: ggml prints the
    reason of an abort there, and a backtrace, gdb's if there is one, unless it is told not to.
    """
    handle = connection.fileno()
    code = f"import sys; sys.path[:] = {sys.path!r}; from native.isolated import serve; serve({handle})"
    environment = {"OPENBLAS_NUM_THREADS": "1"} | os.environ | {"GGML_NO_BACKTRACE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[handle],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )


def _death(exitcode: int, stderr: str, log: Sequence[str], activity: tuple[str, str]) -> NativeError:
    """What to say of a process that is gone: what it did with which file, how it ended, and its last words."""
    said = [line.strip() for line in stderr.splitlines() if line.strip()]
    words = re.sub(r"^/\S*/(?=[^/\s]+:\d+: )", "", said[-1]) if said else (log[-1] if log else "none")  # no folders
    how = f"was stopped by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with code {exitcode}"
    hint = "; was there too little memory?" if exitcode == -signal.SIGKILL else ""
    path, what = activity
    message = f"{path and f'{path}: '}llama.cpp {how} while {what}; its last words: {words}{hint}"
    return NativeError(message).with_details("\n".join((*log, stderr)))


def _unexpected(error: Exception, activity: tuple[str, str]) -> NativeError:
    """An exception that nobody foresaw, as one line with its traceback as details."""
    path, what = activity
    reason = "too little memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
    line = " ".join(f"{path and f'{path}: '}failed while {what or 'starting'} ({reason})".split())
    return NativeError(line).with_details("".join(traceback.format_exception(error)))


def _die_with_parent() -> None:
    """Where there is prctl (Linux): be killed as soon as the thread that started this process is gone, even within C."""
    with suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def serve(handle: int) -> None:
    """What the fresh process does with its end of the connection, a file descriptor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    _die_with_parent()
    os.set_blocking(2, False)  # nobody reads it before the end: what does not fit is lost, rather than waited for
    connection = Connection(handle)

    def log(line: str) -> None:
        try:
            connection.send((LOGGED, line))
        except OSError:  # the parent is gone, and C, which called this, would go on for as long as it takes
            os._exit(1)

    native_log().listeners.append(log)
    native_log().activity_listeners.append(lambda path, what: connection.send((BEGUN, (path, what))))
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        function, args, kwargs = connection.recv()
        generator = function(*args, **kwargs)
        kind = YIELDED
        while kind == YIELDED:
            kind, value = _advance(generator, connection.recv())
            connection.send((kind, value))


def _advance(generator: Generator[Any, Any, Any], sent: Any) -> tuple[int, Any]:
    """What comes of sending `sent` to the generator: kind and value of the message to the parent."""
    try:
        return YIELDED, generator.send(sent)
    except StopIteration as stop:
        return RETURNED, stop.value
    except (NativeError, OSError, UnicodeError) as error:
        return RAISED, error
    except Exception as error:
        return RAISED, _unexpected(error, native_log().activity)
