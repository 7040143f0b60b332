"""Run a generator in a process of its own: an abort or crash of llama.cpp there is an error here, not the end."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from native.errors import NativeError

YIELDED, LOGGED, RETURNED, RAISED = range(4)


def isolated(
    function: Callable[..., Generator[Any, Any, Any]],
    *args: Any,
    on_log: Callable[[str], None] | None = None,
    **kwargs: Any,
) -> Generator[Any, Any, Any]:
    """Run the generator `function(*args, **kwargs)` in a fresh process: what it yields, returns and is sent goes across.

    `function` and all values must be picklable. `on_log` hears each line of llama.cpp's log. Closing this generator
    ends the process. Raises what the generator raises, and NativeError with the last log line if the process dies.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function, args, kwargs), daemon=True)
    with _one_blas_thread():
        process.start()
    theirs.close()
    last_line = ""
    try:
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
        process.join()
        raise NativeError(
            f"llama.cpp {_how_it_ended(process.exitcode)}; its last words: {last_line or 'none'}"
        ) from None
    finally:
        process.kill()
        process.join()
        ours.close()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Let a process that is started meanwhile run NumPy in one thread, unless the user said otherwise.

    llama.cpp's threads take all processors there; OpenBLAS's would spin against them, at twice the time for both.
    """
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["OPENBLAS_NUM_THREADS"]


def _how_it_ended(exitcode: int | None) -> str:
    return (
        f"was stopped by {signal.Signals(-exitcode).name}"
        if exitcode and exitcode < 0
        else f"ended with code {exitcode}"
    )


def _serve(
    connection: Connection,
    function: Callable[..., Generator[Any, Any, Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    from native.library import native_log, report_abort

    def log(line: str) -> None:
        connection.send((LOGGED, line))

    native_log().listeners.append(log)
    keep_alive = report_abort(log)
    try:
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
    del keep_alive
