"""How long work tells how far it is, and how long a part of it took."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

Progress = Callable[[float, float, str], None]
"""Called with what is done, the total, both in the unit of the work, and a note such as an intermediate result."""

Item = TypeVar("Item")


def silent(done: float, total: float, note: str) -> None:
    """A Progress that nobody watches."""


class Stopwatch:
    """Adds up the `seconds` spent within it, and in producing the items of `timed`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self.seconds -= time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter()

    def timed(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items; the time that their consumer takes is not counted."""
        iterator = iter(items)
        with suppress(StopIteration):
            while True:
                with self:
                    item = next(iterator)
                yield item
