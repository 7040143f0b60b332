"""Run a generator in a process of its own: an abort or crash of llama.cpp there is an error here, not the end."""

import multiprocessing
import signal
from collections.abc import Callable, Generator
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
    ends the process. Raises what the generator raises, and NativeError with the last log lines if the process dies.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function, args, kwargs), daemon=True)
    process.start()
    theirs.close()
    log: list[str] = []
    try:
        sent = None
        while True:
            ours.send(sent)
            kind, value = _answer(ours, log, on_log)
            if kind == RETURNED:
                return value
            if kind == RAISED:
                raise value
            sent = yield value
    except (EOFError, ConnectionError):
        process.join()
        raise _death(process.exitcode, log) from None
    finally:
        process.kill()
        process.join()
        ours.close()


def _answer(connection: Connection, log: list[str], on_log: Callable[[str], None] | None) -> tuple[int, Any]:
    while True:
        kind, value = connection.recv()
        if kind != LOGGED:
            return kind, value
        log[:-11] = []
        log.append(value)
        if on_log:
            on_log(value)


def _death(exitcode: int | None, log: list[str]) -> NativeError:
    how = (
        f"was stopped by {signal.Signals(-exitcode).name}"
        if exitcode and exitcode < 0
        else f"ended with code {exitcode}"
    )
    lines = [f"    llama.cpp: {line}" for line in log]
    return NativeError("\n".join([f"llama.cpp {how}; the file or the options are something it cannot take", *lines]))


def _serve(
    connection: Connection,
    function: Callable[..., Generator[Any, Any, Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    from native.library import native_log, report_abort

    native_log().listeners.append(lambda line: connection.send((LOGGED, line)))
    keep_alive = report_abort(lambda message: connection.send((LOGGED, message)))
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
