"""Run a generator in a process of its own: an abort or crash of llama.cpp there is an error here, not the end."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from typing import IO, Any

from native.errors import NativeError

YIELDED, LOGGED, RETURNED, RAISED = range(4)


def isolated(
    function: Callable[..., Generator[Any, Any, Any]],
    *args: Any,
    on_log: Callable[[str], None] | None = None,
    **kwargs: Any,
) -> Generator[Any, Any, Any]:
    """Run the generator `function(*args, **kwargs)` in a fresh process: what it yields, returns and is sent goes across.

    `function` and all values must be picklable. `on_log` hears each line of llama.cpp's log; what else the process
    prints is seen by nobody. Closing this generator ends the process. Raises what the generator raises, and NativeError
    with the last line of its stderr, else of the log, if the process dies.
    """
    ours, theirs = multiprocessing.Pipe()
    process = _start(theirs)
    theirs.close()
    stderr = process.stderr
    assert stderr is not None  # `_start` makes it a pipe
    last_line = ""
    try:
        ours.send((function, args, kwargs))
        sent = None
        while True:
            ours.send(sent)
            while (answer := ours.recv())[0] == LOGGED:
                last_line = answer[1]
                if on_log:
                    on_log(last_line)
            kind, value = answer
            if kind == RETURNED:
                return value
            if kind == RAISED:
                raise value
            sent = yield value
    except (EOFError, ConnectionError):
        process.wait()
        raise NativeError(
            f"llama.cpp {_how_it_ended(process.returncode)}; its last words: {_last_words(stderr) or last_line or 'none'}"
        ) from None
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


def _last_words(stderr: IO[bytes]) -> str:
    """The last line that a process which is gone wrote to its stderr, a source file in it without its folders."""
    lines = [line for line in stderr.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    return re.sub(r"^/\S*/(?=[^/\s]+:\d+: )", "", lines[-1].strip()) if lines else ""


def _how_it_ended(exitcode: int | None) -> str:
    return (
        f"was stopped by {signal.Signals(-exitcode).name}"
        if exitcode and exitcode < 0
        else f"ended with code {exitcode}"
    )


def serve(handle: int) -> None:
    """What the fresh process does with its end of the connection, a file descriptor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    os.set_blocking(2, False)  # nobody reads it before the end: what does not fit is lost, rather than waited for
    from native.library import native_log

    connection = Connection(handle)

    def log(line: str) -> None:
        connection.send((LOGGED, line))

    native_log().listeners.append(log)
    try:
        function, args, kwargs = connection.recv()
        generator = function(*args, **kwargs)
        try:
            while True:
                connection.send((YIELDED, generator.send(connection.recv())))
        except StopIteration as stop:
            connection.send((RETURNED, stop.value))
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except Exception as error:
        connection.send((RAISED, error))
